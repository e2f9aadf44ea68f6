import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from pipeline import diagnosis, params
from pipeline.bundle.manifest import Bundle, bundle_digest
from pipeline.registry import benchmarks, connection
from pipeline.registry.connection import connect
from pipeline.registry.promoting import promote
from pipeline.registry.pulling import pull
from pipeline.registry.references import find, parse
from pipeline.registry.registering import register
from pipeline.registry.runs import Runs
from pipeline.registry.versions import Versions
from tests.conftest import slow
from tests.published import ROOT, client, write_bundle, write_evaluation, write_project

BIN = Path(sys.executable).parent
NAME = "glance-scenes"
CANDIDATE = f"models:/{NAME}@candidate"


@pytest.fixture
def project(fresh_project, database):
    """The same with an empty registry."""
    (fresh_project / ".glance").mkdir()
    shutil.copy(database, fresh_project / ".glance/mlflow.db")
    return fresh_project


@pytest.fixture
def fresh_project(tmp_path, monkeypatch):
    """A finished project as the working directory, without a registry yet."""
    for name in [name for name in os.environ if name.startswith(("MLFLOW", "DVC"))]:
        monkeypatch.delenv(name)
    for name in connection.ENVIRONMENT:  # so that what connect sets is taken back
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    root = write_project(tmp_path / "project")
    monkeypatch.chdir(root)
    monkeypatch.setenv("DVC_ROOT", str(root))
    return root


@pytest.fixture(scope="module")
@slow
def server(tmp_path_factory):
    """The URI of a real MLflow server and the folder where it keeps artifacts."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")),
    ]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        uri = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 300
        while not _healthy(uri):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the MLflow server did not start:\n{(folder / 'log').read_text()}")
            time.sleep(0.5)
        yield uri, folder / "artifacts"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


def _healthy(uri):
    try:
        return urllib.request.urlopen(f"{uri}/health", timeout=2).status == 200
    except (urllib.error.URLError, OSError):
        return False


def runs(name=NAME):
    """The parents and the children of the experiment."""
    mlflow = client()
    found = mlflow.search_runs([mlflow.get_experiment_by_name(name).experiment_id])
    return [r for r in found if "mlflow.parentRunId" not in r.data.tags], [
        r for r in found if "mlflow.parentRunId" in r.data.tags
    ]


def versions():
    return client().search_model_versions(f"name = '{NAME}'")


def test_register_publishes_a_run_with_a_child_per_stage(project, monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "calm-fish")
    done = register(params.load())
    (parent,), children = runs()
    assert parent.info.run_id == done.run_id and parent.info.run_name == "calm-fish"
    assert parent.data.tags["dvc_experiment"] == "calm-fish"
    assert parent.data.tags["model_version"] == "1"
    assert parent.data.params["train_slow.learning_rate"] == str(params.load().train_slow.learning_rate)
    assert parent.data.metrics["arms.student.retention"] == 0.97
    assert "arms.teacher.psnr" not in parent.data.metrics

    by_stage = {child.info.run_name: child for child in children}
    assert set(by_stage) == {"train_slow", "evaluate", "time_arms", "register"}
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {done.run_id}
    assert {run.info.status for run in [parent, *children]} == {"FINISHED"}
    slow = by_stage["train_slow"].data
    assert slow.params == {"train_slow.learning_rate": "0.001", "train_slow.train_steps": "3", "training.rank": "2"}
    assert slow.tags["dep.artifacts/trajectories"] == "11aa.dir" and slow.tags["out.artifacts/train_slow"] == "22bb.dir"
    assert by_stage["evaluate"].data.metrics["arms.student.score"] == 0.93
    assert by_stage["time_arms"].data.metrics["arms.student.speedup_batch1"] == 9.5
    assert parent.data.metrics["arms.student.speedup_batch1"] == 9.5

    mlflow = client()
    history = mlflow.get_metric_history(by_stage["train_slow"].info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 0.25)]
    shown = {file.path for file in mlflow.list_artifacts(by_stage["train_slow"].info.run_id, "train_slow")}
    assert shown == {"train_slow/history.csv"}
    shown = {file.path for file in mlflow.list_artifacts(by_stage["evaluate"].info.run_id)}
    assert shown == {"images", "metrics.json"}


def test_an_evaluation_of_its_own_stands_for_the_stages(project):
    shutil.move(project / "artifacts/evaluation", project / "again")
    shutil.move(project / "artifacts/timing/latency.json", project / "again")
    copy = shutil.copytree("artifacts/bundle", "copy")  # the same bytes, made by the same stages
    done = register(params.load(), Path(copy), Path("again"))
    (parent,), children = runs()
    assert {child.info.run_name for child in children} == {"train_slow", "register"}
    assert parent.info.run_name.startswith("repro ") and "provenance" not in parent.data.tags
    shown = {file.path for file in client().list_artifacts(done.run_id, "again")}
    assert shown == {"again/images", "again/latency.json", "again/metrics.json"}


def test_register_names_the_git_revision(project):
    git = ["git", "-c", "user.name=n", "-c", "user.email=e"]
    for arguments in (["init", "-q"], ["add", "params.yaml"], ["commit", "-qm", "start"]):
        subprocess.run([*git, *arguments], cwd=project, check=True)
    revision = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    register(params.load())
    assert runs()[0][0].data.tags["git_revision"] == revision
    (project / "params.yaml").write_text((project / "params.yaml").read_text() + "\n")
    register(params.load())
    assert runs()[0][0].data.tags["git_revision"] == f"{revision}-dirty"


def test_a_version_says_what_it_is(project):
    version = register(params.load()).version
    version = find(connect(), f"models:/{NAME}/{version.number}")
    assert version.aliases == ("candidate",)
    assert version.tags["bundle_digest"] == bundle_digest(project / "artifacts/bundle")
    assert version.tags["retention"] == "0.97" and version.tags["nfe"] == "8"
    assert version.tags["speedup_batch1"] == "9.5"
    assert version.tags["base_digest"] == "sha256:" + 64 * "0"


def test_the_same_bytes_make_no_second_version_but_a_visible_run(project, monkeypatch):
    first = register(params.load())
    monkeypatch.setenv("DVC_EXP_NAME", "an-ablation")
    write_evaluation(project, retention=0.5)
    second = register(params.load())
    assert (first.created, second.created) == (True, False)
    assert [int(version.version) for version in versions()] == [1]
    assert {run.info.run_name for run in runs()[0]} >= {"an-ablation"} and len(runs()[0]) == 2
    assert find(connect(), CANDIDATE).tags["retention"] == "0.5"  # as measured last


def test_other_bytes_make_a_second_version_which_is_the_candidate(project):
    register(params.load())
    write_bundle(project / "artifacts/bundle", seed=1)
    write_evaluation(project, retention=0.97)
    assert register(params.load()).created
    assert find(connect(), CANDIDATE).number == 2


def test_a_registration_that_another_machine_overtakes_is_taken_back(project, monkeypatch):
    register(params.load())
    tagged, calls = Versions.tagged, []

    def blind_at_first(*arguments):
        calls.append(arguments)
        return tagged(*arguments) if len(calls) > 1 else []

    monkeypatch.setattr(Versions, "tagged", blind_at_first)
    done = register(params.load())
    assert not done.created and done.version.number == 1
    assert [int(version.version) for version in versions()] == [1]


@pytest.mark.slow  # four processes that import MLflow
def test_four_registrations_at_once_on_a_fresh_database_make_one_version(fresh_project):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "stages.register"]
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    ended = [(*process.communicate(timeout=900), process.returncode) for process in started]
    assert [code for _, _, code in ended] == [0, 0, 0, 0], ended
    parents, children = runs()
    assert len(parents) == 4 and len(children) == 16
    assert [int(version.version) for version in versions()] == [1]
    assert sum("these are the same bytes" in out for out, _, _ in ended) == 3


def test_pull_brings_the_bytes_that_were_registered(project, tmp_path):
    register(params.load())
    folder = pull(CANDIDATE, tmp_path / "pulled")
    assert bundle_digest(folder) == bundle_digest(project / "artifacts/bundle")
    assert sorted(path.name for path in folder.iterdir()) == sorted(p.name for p in Path("artifacts/bundle").iterdir())
    assert (project / "artifacts/bundle/slow.safetensors").is_file()  # and the registry's own copy stays
    assert pull(CANDIDATE, tmp_path / "pulled") == folder
    cached = pull(f"models:/{NAME}/1")
    assert cached.parent == project / ".glance/bundles" and pull(f"models:/{NAME}/1") == cached


def test_hidden_files_beside_a_bundle_are_no_part_of_it(project, tmp_path):
    notes = (".DS_Store", "._slow.safetensors", "Thumbs.db")
    bundle = project / "artifacts/bundle"
    digest, names = bundle_digest(bundle), sorted(path.name for path in bundle.iterdir())
    for name in notes:
        (bundle / name).write_text("note")
    (bundle / ".cache").mkdir()
    (bundle / ".cache/run.py").write_text("note")
    done = register(params.load())
    assert done.version.tags["bundle_digest"] == digest
    (stored,) = project.glob(".glance/mlartifacts/*/artifacts/bundle")
    assert sorted(path.name for path in stored.iterdir()) == names
    (stored / ".DS_Store").write_text("note")
    folder = pull(CANDIDATE, tmp_path / "pulled")
    assert sorted(path.name for path in folder.iterdir()) == names
    (folder / ".DS_Store").write_text("note")
    assert pull(CANDIDATE, folder) == folder


def test_register_and_pull_over_http(fresh_project, server, tmp_path, monkeypatch):
    uri, artifacts = server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    first, second = register(params.load()), register(params.load())
    assert (first.created, second.created) == (True, False)
    assert first.version.number == second.version.number == 1
    parents, children = runs()
    assert len(parents) == 2 and len(children) == 8
    assert not (fresh_project / ".glance/mlflow.db").exists()

    folder = pull(CANDIDATE, tmp_path / "pulled")
    assert bundle_digest(folder) == bundle_digest(fresh_project / "artifacts/bundle")
    assert promote(params.load()).number == 1
    assert pull(f"models:/{NAME}@champion", tmp_path / "champion").is_dir()

    (stored,) = artifacts.rglob("bundle/slow.safetensors")
    _flip(stored)
    with pytest.raises(ValueError, match=rf"^{NAME} version 1 does not match its digest: registered as sha256:"):
        pull(CANDIDATE, tmp_path / "tampered")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["champion", "project", "pulled"]

    assert f"the candidate: {NAME} version 1 does not match its digest" in diagnosis.registry().text
    third = register(params.load())
    assert (third.created, third.version.number) == (True, 2)
    shutil.rmtree(artifacts)
    with pytest.raises(ValueError, match=rf"{NAME} version 2 holds no files: nothing is at mlflow-artifacts:/"):
        pull(CANDIDATE, tmp_path / "gone")
    assert register(params.load()).version.number == 3
    assert bundle_digest(pull(CANDIDATE, tmp_path / "back")) == bundle_digest("artifacts/bundle")
    assert promote(params.load()).number == 3
    assert diagnosis.registry() == diagnosis.Finding(True, uri)
    assert not list(artifacts.rglob("*probe*"))

    killed(fresh_project, "log_files")
    register(params.load())
    parents, children = runs()
    assert [run.info.status for run in [*parents, *children]].count("KILLED") == 1
    assert "RUNNING" not in {run.info.status for run in [*parents, *children]}
    mlflow = client()
    mlflow.delete_experiment(mlflow.get_experiment_by_name(NAME).experiment_id)
    command = f"restore it with `mlflow experiments restore --experiment-id {parents[0].info.experiment_id}`"
    with pytest.raises(ConnectionError, match=command):
        register(params.load())


def _flip(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_bundle_of_three_adapters_is_registered_promoted_and_pulled(project, tmp_path):
    folder = write_bundle(
        Path("artifacts/bundle"),
        u=[1.0, 0.5, 0.25],
        steps=[0, 2, 3],
        phases=[
            {"name": name, "file": f"{name}.safetensors", "steps": [step], "u": [u], "sigmas": sigmas}
            for name, step, u, sigmas in (
                ("slow", 0, 1.0, [1.0, 0.6]),
                ("middle", 2, 0.5, [0.6, 0.3]),
                ("fast", 3, 0.25, [0.3, 0.0]),
            )
        ],
    )
    shutil.copy(folder / "slow.safetensors", folder / "middle.safetensors")
    write_evaluation(project, retention=0.97)
    register(params.load())
    promote(params.load())
    pulled = Bundle.load(pull(f"models:/{NAME}@champion", tmp_path / "pulled"))
    assert list(pulled.files) == ["slow", "middle", "fast"]
    assert bundle_digest(pulled.folder) == bundle_digest(folder)


@pytest.mark.parametrize("name", ["slow.safetensors", "glance.json", "README.md"])
def test_a_tampered_artifact_is_refused_and_leaves_nothing(project, tmp_path, name):
    register(params.load())
    (stored,) = project.glob(f".glance/mlartifacts/*/artifacts/bundle/{name}")
    _flip(stored)
    with pytest.raises(ValueError, match="does not match its digest"):
        pull(CANDIDATE, tmp_path / "pulled")
    assert [path.name for path in tmp_path.iterdir()] == ["project"]


@pytest.mark.parametrize("name", ["model.pkl", "run.py", "MLmodel", "more/x.json"])
def test_a_version_with_a_file_that_no_bundle_has_is_refused(project, tmp_path, name):
    register(params.load())
    (stored,) = project.glob(".glance/mlartifacts/*/artifacts/bundle")
    (stored / name).parent.mkdir(exist_ok=True)
    (stored / name).write_text("{}")
    with pytest.raises(ValueError, match=rf"version 1 holds {name.split('/')[0]}/?; a bundle has only"):
        pull(CANDIDATE, tmp_path / "pulled")
    assert [path.name for path in tmp_path.iterdir()] == ["project"]


def test_a_version_without_files_is_refused(project, tmp_path):
    register(params.load())
    (stored,) = project.glob(".glance/mlartifacts/*/artifacts/bundle")
    shutil.rmtree(stored)
    stored.mkdir()
    with pytest.raises(ValueError, match="version 1 holds no files"):
        pull(CANDIDATE, tmp_path / "pulled")


def test_a_version_of_somebody_else_is_refused(project, tmp_path):
    store = connect()
    with store.runs.started(store.experiments.ensure("theirs"), "run") as run_id:
        source = store.runs.log_folder(run_id, Path("artifacts/bundle"), "model")
        store.versions.create("theirs", source, run_id, {})
    with pytest.raises(ValueError, match="theirs version 1 has no tag bundle_digest"):
        pull("models:/theirs/1", tmp_path / "pulled")


def test_pull_does_not_replace_something_else(project, tmp_path):
    register(params.load())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.md").write_text("keep")
    with pytest.raises(ValueError, match=rf"mine exists and is not {NAME} version 1: remove it"):
        pull(CANDIDATE, tmp_path / "mine")
    assert (tmp_path / "mine/notes.md").read_text() == "keep"


@pytest.mark.parametrize("reference", ["glance-scenes", "models:/a", "models:/a@", "models:/a/latest", "models:/a/b/1"])
def test_a_reference_of_another_form_is_refused(reference):
    with pytest.raises(ValueError, match="named models:/name@alias or models:/name/version, got"):
        parse(reference)


def test_a_bundle_with_another_file_is_not_registered(project):
    (project / "artifacts/bundle/model.pkl").write_bytes(b"x")
    with pytest.raises(ValueError, match="artifacts/bundle holds model.pkl; a bundle has only"):
        register(params.load())


def test_an_evaluation_without_the_student_is_refused_before_anything_is_written(project):
    (project / "artifacts/evaluation/metrics.json").write_text(json.dumps({"arms": {"teacher": {}}}))
    with pytest.raises(ValueError, match="metrics.json has no arms.student"):
        register(params.load())
    assert client().get_experiment_by_name(NAME) is None


def move(project, name, monkeypatch):
    """Renames the project's folder and goes there."""
    return enter(project.rename(project.parent / name), monkeypatch)


def enter(root, monkeypatch):
    monkeypatch.chdir(root)
    monkeypatch.setenv("DVC_ROOT", str(root))
    return root


def stored(project):
    """The folders with a bundle's bytes that the registry has under the project."""
    return sorted(project.glob(".glance/mlartifacts/*/artifacts/bundle"))


@pytest.mark.parametrize("name", ["renamed", "50%25 off", "Проект №1"])
def test_a_moved_project_pulls_and_registers_in_its_new_place(project, tmp_path, monkeypatch, name):
    first = register(params.load())
    moved = move(project, name, monkeypatch)
    folder = pull(CANDIDATE, tmp_path / "pulled")
    assert bundle_digest(folder) == bundle_digest(moved / "artifacts/bundle")
    assert diagnosis.registry().ok

    second = register(params.load())
    assert not second.created and second.version.number == first.version.number
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "pulled"])
    mlflow = client()
    for run_id in (first.run_id, second.run_id):  # in MLflow's page the runs have their files again
        place = mlflow.get_run(run_id).info.artifact_uri
        assert place == (moved / ".glance/mlartifacts" / run_id / "artifacts").as_uri()
        assert "dvc.lock" in {file.path for file in mlflow.list_artifacts(run_id)}
    assert second.version.source.startswith(moved.as_uri())


def test_a_copied_project_leaves_the_original_alone(project, tmp_path, monkeypatch):
    register(params.load())
    copy = enter(Path(shutil.copytree(project, tmp_path / "copy")), monkeypatch)
    before = {path: path.stat().st_mtime_ns for path in project.rglob("*")}
    _flip(stored(project)[0] / "slow.safetensors")
    assert bundle_digest(pull(CANDIDATE, tmp_path / "pulled")) == bundle_digest(copy / "artifacts/bundle")
    assert not register(params.load()).created
    write_bundle(copy / "artifacts/bundle", seed=1)
    write_evaluation(copy, retention=0.97)
    assert register(params.load()).version.source.startswith(copy.as_uri())
    assert {path: path.stat().st_mtime_ns for path in project.rglob("*")}.keys() == before.keys()
    enter(project, monkeypatch)
    assert [int(version.version) for version in versions()] == [1]


@pytest.mark.parametrize("shared", ["shared.db", "project/shared.db"])
def test_two_projects_on_one_database_keep_their_files_apart_and_read_each_other(project, monkeypatch, shared):
    uri = f"sqlite:///{project.parent / shared}"
    shutil.move(project / ".glance/mlflow.db", project.parent / shared)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    other = enter(write_project(project.parent / "other", seed=1), monkeypatch)
    register(params.load())
    written = sorted(other.rglob("*"))
    enter(project, monkeypatch)
    second = register(params.load())
    assert (second.created, second.version.number) == (True, 2)
    assert len(stored(project)) == 1 and sorted(other.rglob("*")) == written
    for root in (project, other):
        enter(root, monkeypatch)
        for number in (1, 2):
            assert pull(f"models:/{NAME}/{number}", root / f"pulled-{number}").is_dir()


def test_the_same_bytes_are_uploaded_again_when_their_files_are_gone(project, tmp_path, caplog):
    register(params.load())
    shutil.rmtree(project / ".glance/mlartifacts")
    with pytest.raises(ValueError, match=rf"{NAME} version 1 holds no files: nothing is at {project}/.glance/mlartif"):
        pull(CANDIDATE, tmp_path / "pulled")
    with pytest.raises(ValueError, match=f"{NAME} version 1 holds no files"):
        promote(params.load())
    done = register(params.load())
    assert (done.created, done.version.number) == (True, 2)
    assert f"registering these bytes anew: {NAME} version 1 holds no files" in caplog.text
    assert find(connect(), CANDIDATE).number == 2
    assert bundle_digest(pull(CANDIDATE, tmp_path / "pulled")) == bundle_digest("artifacts/bundle")
    assert not register(params.load()).created


def test_the_same_bytes_are_uploaded_again_when_their_files_have_changed(project):
    register(params.load())
    _flip(stored(project)[0] / "fast.safetensors")
    assert register(params.load()).version.number == 2
    assert len(stored(project)) == 2


def test_an_upload_that_does_not_come_back_is_no_version(project, monkeypatch):
    log_folder = Runs.log_folder

    def loses_a_byte(*arguments):
        source = log_folder(*arguments)
        _flip(stored(project)[0] / "slow.safetensors")
        return source

    monkeypatch.setattr(Runs, "log_folder", loses_a_byte)
    with pytest.raises(ValueError, match="the upload of artifacts/bundle does not match its digest: registered as sha"):
        register(params.load())
    assert versions() == []
    assert {run.info.status for run in runs()[0]} == {"FAILED"}


@pytest.mark.slow  # runs MLflow's command
def test_a_deleted_experiment_is_named_with_the_command_that_restores_it(project, tmp_path):
    register(params.load())
    mlflow = client()
    mlflow.delete_experiment(mlflow.get_experiment_by_name(NAME).experiment_id)
    with pytest.raises(ConnectionError, match=f"experiment {NAME} of MLflow at .* is deleted: restore it") as refused:
        register(params.load())
    assert str(refused.value) in diagnosis.registry().text
    assert pull(CANDIDATE, tmp_path / "pulled").is_dir()  # what is registered stays
    command = str(refused.value).split("`")[1]
    subprocess.run(command, shell=True, check=True, env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"})
    assert not register(params.load()).created
    assert len(runs()[0]) == 2


def test_a_deleted_run_and_a_deleted_model_are_no_obstacle(project, tmp_path):
    done = register(params.load())
    mlflow = client()
    mlflow.delete_run(done.run_id)
    assert pull(CANDIDATE, tmp_path / "pulled").is_dir()
    assert not register(params.load()).created
    mlflow.delete_registered_model(NAME)
    with pytest.raises(ConnectionError, match=f"refused: .*{NAME}.* not found"):
        pull(CANDIDATE, tmp_path / "again")
    assert register(params.load()).created
    assert pull(CANDIDATE, tmp_path / "again").is_dir()


def test_an_alias_that_somebody_moved_comes_back_to_what_is_registered(project):
    register(params.load())
    write_bundle(project / "artifacts/bundle", seed=1)
    write_evaluation(project, retention=0.97)
    assert register(params.load()).version.number == 2
    client().set_registered_model_alias(NAME, "candidate", "1")
    assert register(params.load()).version.number == 2
    assert find(connection.connect(), CANDIDATE).number == 2


def killed(project, when):
    """A registration that gets SIGKILL when it calls this method of the store's runs."""
    program = f"""
import os, signal
from pipeline import diagnosis, params
from pipeline.registry.registering import register
from pipeline.registry.runs import Runs
Runs.{when} = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
register(params.load())
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", program], cwd=project, env=environment).returncode == -signal.SIGKILL


@pytest.mark.slow  # two processes that are killed
def test_the_next_registration_ends_the_runs_of_a_killed_one(project, monkeypatch):
    store = connection.connect()
    alive = client().create_run(store.experiments.ensure(NAME), run_name="of somebody else").info.run_id
    for when in ("log_folder", "log_files"):
        killed(project, when)
        assert {run.info.run_name for run in runs()[0] if run.info.status == "RUNNING"} > {"of somebody else"}
    move(project, "renamed", monkeypatch)
    done = register(params.load())
    parents, children = runs()
    status = {run.info.run_id: run.info.status for run in [*parents, *children]}
    assert [run_id for run_id in status if status[run_id] == "RUNNING"] == [alive]
    assert list(status.values()).count("KILLED") == 2 and status[done.run_id] == "FINISHED"


def test_promote_sets_the_champion(project):
    register(params.load())
    assert promote(params.load()).number == 1
    assert find(connect(), f"models:/{NAME}@champion").number == 1


@pytest.mark.parametrize("retention", [0.89, float("nan")])
def test_promote_refuses_below_the_threshold_unless_forced(project, retention):
    write_evaluation(project, retention)
    register(params.load())
    with pytest.raises(ValueError, match=rf"{NAME} version 1 keeps (0.890|nan) .*register.min_retention asks for 0.9"):
        promote(params.load(), "1")
    with pytest.raises(ConnectionError, match="champion"):
        find(connect(), f"models:/{NAME}@champion")
    assert promote(params.load(), "1", force=True).number == 1


def test_promote_refuses_what_was_never_measured(project):
    write_evaluation(project, None)
    register(params.load())
    with pytest.raises(ValueError, match="version 1 has no measured retention"):
        promote(params.load(), CANDIDATE)


def test_register_with_the_server_down_is_one_sentence(fresh_project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "stages.register"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "Error: register: no MLflow server answers at http://127.0.0.1:9: start it, or unset MLFLOW_TRACKING_URI"
    ]
    assert not (fresh_project / ".glance").exists()


def write_benchmarks(folder, digest, retention=0.98):
    """What `glance benchmark collect` leaves of one benchmark."""
    folder.mkdir(parents=True, exist_ok=True)
    student = {
        "geneval": {"value": 0.8, "retention": retention},
        "geneval_position": {"value": 0.5, "retention": 0.9},
        "fid": {"value": 12.0, "difference": 1.5},
    }
    content = {"prompts": 553, "subset": False, "waiting": [], "bundle_digest": digest, "arms": {"student": student}}
    (folder / "metrics.json").write_text(json.dumps({"geneval": content}))
    (folder / "table.csv").write_text("benchmark\ngeneval\n")
    (folder / "report.html").write_text("<!doctype html>")
    return folder


def test_official_benchmarks_are_recorded_and_asked_for_in_a_promotion(project):
    settings = params.load()
    done = register(settings)
    results = write_benchmarks(project / "benchmarks/results", bundle_digest("artifacts/bundle"))
    (line,) = benchmarks.record(settings, results)
    assert line.startswith(f"geneval: {NAME} version 1 is tagged (run ")
    (child,) = [run for run in runs()[1] if run.info.run_name == "benchmark geneval"]
    assert child.data.tags["mlflow.parentRunId"] == done.run_id and child.info.status == "FINISHED"
    assert child.data.metrics["student.geneval.value"] == 0.8 and child.data.metrics["student.fid.difference"] == 1.5
    assert {file.path for file in connect().client.list_artifacts(child.info.run_id)} == {"report.html", "table.csv"}
    tags = find(connect(), CANDIDATE).tags
    assert {key: tags[key] for key in tags if key.startswith("geneval")} == {
        "geneval.retention": "0.98",
        "geneval.geneval.retention": "0.98",
        "geneval.geneval_position.retention": "0.9",
        "geneval.prompts": "553",
    }
    with pytest.raises(ValueError, match="version 1 must keep 0.99 of the teacher's score in geneval, got 0.980"):
        promote(settings, required={"geneval": 0.99})
    with pytest.raises(ValueError, match="version 1 has no retention in dpg: run `glance benchmark collect --record`"):
        promote(settings, required={"dpg": 0.9})
    assert "champion" not in find(connect(), CANDIDATE).aliases
    assert promote(settings, required={"geneval": 0.98, "geneval.geneval_position": 0.9}).number == 1


def test_official_benchmarks_of_a_pair_that_is_not_registered_are_refused(project):
    settings = params.load()
    with pytest.raises(ValueError, match="metrics.json is missing: run `glance benchmark collect` first"):
        benchmarks.record(settings, project / "benchmarks/results")
    results = write_benchmarks(project / "benchmarks/results", "sha256:other")
    with pytest.raises(ValueError, match=f"geneval measured a pair that is not registered as {NAME}"):
        benchmarks.record(settings, results)
    results = write_benchmarks(project / "benchmarks/results", "")
    with pytest.raises(ValueError, match="geneval has no images of student: generate them first"):
        benchmarks.record(settings, results)
