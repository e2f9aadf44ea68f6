"""A small project for the tests that run whole stages: a clone of the working tree, a tiny teacher, a short profile."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.backbones import precision
from pipeline.families import CLASSES

ROOT = Path(__file__).parent.parent

SHORT = {
    "teacher": {"steps": 10},
    "trajectories": {"prompts": 6, "shard_size": 2, "steps": 5},
    "partition": {"slow_steps": 1, "fast_steps": 3},
    "anchors": {"prompts": 3},
    "training": {"rank": 2, "alpha": 2, "batch": 2, "anchor_batch": 2, "precision": "fp32"},
    "train_slow": {"train_steps": 60},
    "train_fast": {"train_steps": 60},
    "evaluation": {
        "prompts": 6,
        "batch": 6,
        "diversity_prompts": 1,
        "diversity_seeds": 2,
        "latency_repeats": 1,
        "bootstrap": 100,
        "grid_prompts": 2,
    },
    "runtime": {"checkpoint_every": 5},
}


def slow(fixture: Callable) -> Callable:
    """Says of a fixture's function that it runs DVC, a server or whole stages: what needs it is a slow test."""
    fixture.slow = True
    return fixture


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as slow every test that needs a slow fixture, directly or through another one."""
    for item in items:
        used = item._fixtureinfo.name2fixturedefs if isinstance(item, pytest.Function) else {}
        if any(getattr(definitions[-1].func, "slow", False) for definitions in used.values()):
            item.add_marker(pytest.mark.slow)


class Project:
    """A folder with the project in it, and the commands that a person would type there."""

    def __init__(self, folder: Path, temporary: Path):
        self.folder = folder
        foreign = ("DVC_", "MLFLOW_", "GIT_")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DVC_SITE_CACHE_DIR": str(temporary / "dvc-site"),
            "HF_HUB_OFFLINE": "1",
            "DVC_NO_ANALYTICS": "1",  # `dvc init` would leave a process that reports
            "CI": "1",  # DVC then asks for no update either
        }

    def run(self, *command: str, **options) -> subprocess.CompletedProcess:
        """Runs a command here to its end; output and errors come together as text."""
        return subprocess.run(command, **self._options(), **options)

    def succeed(self, *command: str) -> str:
        """The output of a command that must succeed."""
        result = self.run(*command)
        assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}"
        return result.stdout

    def start(self, *command: str) -> subprocess.Popen:
        """Starts a command in a process group of its own, so that a signal reaches all of it, as in a terminal."""
        return subprocess.Popen(command, **self._options(), start_new_session=True)

    def _options(self) -> dict:
        return {
            "cwd": self.folder,
            "env": self.env,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            "text": True,
        }

    def commit(self, message: str) -> None:
        """Commits everything that git does not ignore."""
        self.succeed("git", "add", "--all")
        self.succeed("git", "commit", "--quiet", "--allow-empty", "--message", message)

    def read_params(self) -> dict:
        """params.yaml as nested dicts."""
        return YAML(typ="safe", pure=True).load(self.folder / "params.yaml")

    def change(self, key: str, value) -> None:
        """Sets one parameter, `section.name`."""
        params = self.read_params()
        section, name = key.split(".")
        params[section][name] = value
        YAML().dump(params, self.folder / "params.yaml")

    def lock(self) -> dict:
        """The stages of dvc.lock: what DVC holds for done."""
        path = self.folder / "dvc.lock"
        return YAML(typ="safe", pure=True).load(path)["stages"] if path.exists() else {}


def make_project(folder: Path, temporary: Path, make_teacher: Callable[[Path], Path], **teacher) -> Project:
    """Clones the working tree, uncommitted changes and all, and swaps in a tiny teacher and the short profile.

    Args:
        folder: Where it goes.
        temporary: For what lies outside of it.
        make_teacher: Writes the teacher.
        teacher: Parameters of its section.
    """
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("artifacts/") and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    make_teacher(folder / "artifacts" / "teacher")
    project = Project(folder, temporary)
    params = project.read_params()
    for section, values in SHORT.items():
        params[section] |= values
    params["teacher"] |= {"family": family(folder / "artifacts" / "teacher"), **teacher}
    YAML().dump(params, folder / "params.yaml")
    project.succeed("git", "init", "--quiet", "--initial-branch", "main")
    project.succeed("git", "config", "user.name", "test")
    project.succeed("git", "config", "user.email", "test@localhost")
    project.commit("start")
    return project


def family(teacher: Path) -> str:
    """The family of a teacher's folder, as params.yaml names it."""
    name = json.loads((teacher / "model_index.json").read_text())["_class_name"]
    return CLASSES[name]


@pytest.fixture(scope="session")
@slow
def project(tmp_path_factory) -> Project:
    """The small project after one undisturbed `dvc repro`; its tests leave it as they found it."""
    from tests.tiny import make_tiny_flux  # diffusers takes seconds to import

    temporary = tmp_path_factory.mktemp("project")
    project = make_project(temporary / "clone", temporary, make_tiny_flux)
    project.start_revision = project.succeed("git", "rev-parse", "HEAD").strip()
    project.first_output = project.succeed("dvc", "repro")
    project.commit("first run")
    return project


@pytest.fixture(scope="session")
@slow
def fresh_project(project, tmp_path_factory) -> Project:
    """A git clone of the small project as it was before its first run."""
    temporary = tmp_path_factory.mktemp("fresh")
    project.succeed("git", "clone", "--quiet", str(project.folder), str(temporary / "clone"))
    fresh = Project(temporary / "clone", temporary)
    fresh.succeed("git", "checkout", "--quiet", "-B", "main", project.start_revision)
    return fresh


@pytest.fixture(scope="session")
def database(tmp_path_factory) -> Path:
    """A database with MLflow's tables, which takes more than a second to make."""
    from pipeline.registry import connection

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(path.parent))
        for name in connection.ENVIRONMENT:  # so that what connect sets is taken back
            patch.setenv(name, "")
            patch.delenv(name)
        connection.connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def run_stage(monkeypatch):
    """Runs a stage here, in a folder; its number of threads does not outlive the test."""
    import torch  # takes a second, and only some tests need it

    threads = torch.get_num_threads()
    monkeypatch.delenv("DVC_ROOT", raising=False)

    def run_in(folder: Path, stage: str) -> None:
        monkeypatch.chdir(folder)
        import_module(f"stages.{stage}").main.main([], standalone_mode=False)

    yield run_in
    torch.set_num_threads(threads)


@pytest.fixture
def computes_bfloat16(monkeypatch):
    """Computes in bfloat16 on every CPU, however slowly."""
    monkeypatch.setattr(precision, "emulates_bfloat16", lambda: False)
