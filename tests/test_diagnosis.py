import json
import shutil
import subprocess
from importlib import metadata

import pytest

from pipeline import backbones, diagnosis, params
from pipeline.registry.promoting import promote
from pipeline.registry.registering import register
from tests.bad_bases import BASES, PARAMETERS, spoil
from tests.published import write_project
from tests.tiny import make_tiny_flux


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A finished project that is no git repository."""
    root = write_project(tmp_path / "project")
    monkeypatch.chdir(root)
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return root


def wrong(finding, text):
    """Is this the finding, with a fix?"""
    return not finding.ok and text in finding.text and finding.fix


def test_git_and_commit(monkeypatch):
    assert wrong(diagnosis.git(), "is not in a git repository")
    assert wrong(diagnosis.commit(), "there is no commit yet")
    subprocess.run(["git", "init", "-q"], check=True)
    assert diagnosis.git().ok
    assert wrong(diagnosis.commit(), "there is no commit yet")
    git = ["git", "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "start"], check=True)
    assert diagnosis.commit().ok
    monkeypatch.setenv("PATH", "")
    assert wrong(diagnosis.git(), "git is not installed")
    assert wrong(diagnosis.commit(), "there is no commit yet")


def test_dvc(project):
    assert wrong(diagnosis.dvc(), "DVC is not initialised")
    (project / ".dvc").mkdir()
    assert wrong(diagnosis.dvc(), "dvc.yaml is missing")
    (project / "dvc.yaml").write_text("stages: {}\n")
    assert diagnosis.dvc().ok


def test_packages(monkeypatch):
    required = ["click>=1", 'colorama>=99; sys_platform == "none"', "pytest>=99; extra == 'test'"]
    monkeypatch.setattr(metadata, "requires", lambda name: required)
    assert diagnosis.packages() == diagnosis.Finding(True, "1 in range")
    required += ["click<1", "no-such-package-at-all"]
    version = metadata.version("click")
    assert wrong(diagnosis.packages(), f"click {version} is not <1; no-such-package-at-all is missing")

    def not_found(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", not_found)
    assert wrong(diagnosis.packages(), "glance-pipeline is not installed")


def test_parameters(project):
    assert wrong(diagnosis.parameters(), "teacher: artifacts/teacher is no folder")
    make_tiny_flux(project / "artifacts/teacher")
    assert diagnosis.parameters().ok
    (project / "params.yaml").write_text("teacher: 3\n")
    assert wrong(diagnosis.parameters(), "trajectories is missing from params.yaml")
    assert wrong(diagnosis.teacher(), "params.yaml does not say where the teacher is")


def test_teacher(project, monkeypatch):
    assert wrong(diagnosis.teacher(), "artifacts/teacher is missing")
    (project / "artifacts/teacher").mkdir()
    assert wrong(diagnosis.teacher(), "artifacts/teacher/model_index.json")
    make_tiny_flux(project / "artifacts/teacher")
    assert wrong(diagnosis.teacher(), "the bundle in artifacts/bundle was made for sha256:000")
    digest = backbones.digest("artifacts/teacher")
    (project / "artifacts/bundle/glance.json").write_text(json.dumps({"base_digest": digest}))
    assert diagnosis.teacher() == diagnosis.Finding(True, f"{digest[:19]}, as in the bundle")
    (project / "artifacts/bundle").rename(project / "elsewhere")
    assert diagnosis.teacher() == diagnosis.Finding(True, f"{digest[:19]}, no bundle yet")


@pytest.mark.parametrize("kind", BASES)
def test_a_teacher_that_cannot_be_followed(project, kind):
    make_tiny_flux(project / "artifacts/teacher")
    assert wrong(diagnosis.teacher(), "the bundle in artifacts/bundle was made for")
    sentence = spoil(project, kind)
    assert wrong(diagnosis.teacher(), sentence)
    assert not diagnosis.fit().ok or kind in PARAMETERS


def test_a_teacher_of_pickles(project):
    folder = make_tiny_flux(project / "artifacts/teacher") / "vae"
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.bin")
    assert wrong(diagnosis.teacher(), "artifacts/teacher/vae holds its weights only as a pickle")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("targets: all ", "targets: al ", "cannot be estimated: training.targets must be one of attention, all"),
        ("device: auto ", "device: cuda:99 ", "cannot be estimated: runtime.device or --device must be one of"),
    ],
)
def test_what_cannot_be_estimated(project, old, new, sentence):
    make_tiny_flux(project / "artifacts/teacher")
    file = project / "params.yaml"
    file.write_text(file.read_text().replace(old, new))
    assert wrong(diagnosis.fit(), sentence)


def test_registry(project, monkeypatch):
    assert diagnosis.registry().ok and not (project / ".glance").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    assert wrong(diagnosis.registry(), "no MLflow server answers at http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "localhost:5000")
    assert wrong(diagnosis.registry(), "MLFLOW_TRACKING_URI must begin with http://")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://127.0.0.1:9/runs")
    assert wrong(diagnosis.registry(), "needs the Python package psycopg")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///new.db")
    assert diagnosis.registry().text == f"sqlite:///{project}/new.db will be made by the first registration"


def test_what_a_registration_would_stumble_over_is_found(project, database):
    (project / ".glance").mkdir()
    shutil.copy(database, project / ".glance" / "mlflow.db")
    register(params.load())
    assert promote(params.load()).number == 1
    assert diagnosis.registry() == diagnosis.Finding(True, f"sqlite:///{project}/.glance/mlflow.db")

    (bundle,) = project.glob(".glance/mlartifacts/*/artifacts/bundle")
    shutil.rmtree(bundle)
    lost = diagnosis.registry()
    assert wrong(lost, "the candidate: glance-scenes version 1 holds no files: nothing is at /")
    assert wrong(lost, "the champion: glance-scenes version 1 holds no files: nothing is at /")
    assert lost.fix.startswith("run `glance register`; register the champion's bundle anew and promote it, or")
    assert register(params.load()).version.number == 2
    assert "candidate" not in diagnosis.registry().text and wrong(diagnosis.registry(), "the champion: ")
    promote(params.load())
    assert diagnosis.registry().ok

    shutil.rmtree(project / ".glance/mlartifacts")
    (project / ".glance/mlartifacts").write_text("in the way")
    assert wrong(diagnosis.registry(), ".glance/mlartifacts cannot be written (")
    assert wrong(diagnosis.registry(), "the candidate: glance-scenes version 2 holds no files")
    (project / "params.yaml").write_text("teacher: 3\n")
    assert wrong(diagnosis.registry(), "params.yaml does not name the model")
