"""The targets of the Makefile in folders of any name, with a Python that only writes down what it is asked for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ["My Drive/glance", "Größe 模型", "it's mine", "a & (b); #c ~", "x" * 100 + "/" + "y" * 100]
GIVEN = ["Makefile", "pyproject.toml", "constraints.txt", "tests/scorers/requirements.txt"]
BAD = ["a:b", "a $HOME b", 'a"b', "a`id`b", "a\\b", "50% a", "why?"]
STUB = """\
#!/bin/sh
printf '%s|%s\\n' "$PWD" "$*" >> "$LOG"
case "$*" in
    "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    "-m pip "* | "-c import sys"* ) ;;
    *) if [ -n "$REAL" ]; then exec "$REAL" "$@"; fi ;;
esac
"""
DVC_YAML = """\
stages:
  write:
    cmd: python -c "open('out', 'w').write('1')"
    outs: [out]
"""


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Runs make in a new folder of a name, and gives the lines that the stub wrote: (folder, arguments)."""
    log = tmp_path / "log"
    python = tmp_path / "python"
    python.write_text(STUB)
    python.chmod(0o755)

    def run(folder, *targets, **environment):
        folder = tmp_path / "in" / folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in GIVEN:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
        log.write_text("")
        foreign = ("MAKE", "MFLAGS", "DVC_", "GIT_", "MLFLOW_")
        env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        env |= {"LOG": str(log), "DVC_SITE_CACHE_DIR": str(tmp_path / "site")} | environment
        command = ["make", f"PYTHON={python}", *targets]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        return done, [tuple(line.split("|")) for line in log.read_text().splitlines()]

    return run


def below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_target_works_in_a_folder_of_any_name_and_stays_in_it(make, tmp_path, folder):
    built = tmp_path / "in" / folder / "teacher" / "build" / "teacher"
    built.mkdir(parents=True)
    (built / "model_index.json").touch()
    (tmp_path / "in" / folder / "artifacts").mkdir()
    done, asked = make(folder, "setup", "test", "lint", "ui", "demo", "teacher")
    assert done.returncode == 0, done.stderr
    place = str(tmp_path / "in" / folder)
    torch = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    beside = "-m pip install --quiet --no-deps --upgrade"
    assert asked == [
        (place, "-c import sys; sys.exit(sys.version_info < (3, 11))"),
        (place, "-m venv .venv"),
        (place, f"-m pip install --quiet {torch}"),
        (place, "-m pip install --quiet --constraint constraints.txt --editable .[test]"),
        (place, "-m pip install --quiet --constraint constraints.txt --editable .[demo]"),
        (place, f"{beside} --target .venv/benchmarks --requirement tests/scorers/requirements.txt"),
        (place, "-m pytest -n 2 --dist loadfile"),
        (place, "-m ruff check ."),
        (place, "-m mlflow ui --backend-store-uri sqlite:///.glance/mlflow.db --host 127.0.0.1 --port 5000"),
        (place, "-m pipeline.cli demo --port 7860"),
        (f"{place}/teacher", "-m dvc repro"),
    ]
    made = {
        ".venv/.installed",
        ".venv/.demo",
        ".venv/bin/python",
        ".venv/benchmarks/.installed",
        "artifacts/teacher/model_index.json",
    }
    given = {*GIVEN, "teacher/build/teacher/model_index.json"}
    assert below(tmp_path / "in") == {f"{folder}/{name}" for name in made | given}
    assert make(folder, "setup")[1] == [], "it is installed"


@pytest.mark.parametrize("folder", BAD)
@pytest.mark.parametrize("target", ["setup", "run"])
def test_a_folder_whose_name_breaks_what_is_installed_is_refused_before_anything_is_made(
    make, tmp_path, folder, target
):
    done, asked = make(folder, target)
    sentence = f"make: the project's path must be without any of : ? % \" ` $ \\, got {tmp_path / 'in' / folder}"
    assert done.returncode != 0 and done.stderr.splitlines()[0] == sentence
    assert asked == [] and not (tmp_path / "in" / folder / ".venv").exists()


@pytest.mark.slow  # runs DVC
@pytest.mark.parametrize("folder", ["My Drive/Größe 模型", "it's mine"])
def test_make_run_goes_on_after_a_dvc_that_was_killed(make, tmp_path, folder):
    project = tmp_path / "in" / folder
    project.mkdir(parents=True)
    git = ["git", "-c", "user.name=n", "-c", "user.email=e"]
    real = {"REAL": sys.executable, "PYTHONPATH": str(ROOT)}
    subprocess.run([*git, "init", "-q"], cwd=project, check=True)
    done, _ = make(folder, "run", **real)
    assert done.returncode != 0 and "DVC needs a git repository with a commit" in done.stderr
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "start"], cwd=project, check=True)
    (project / ".dvc" / "tmp").mkdir(parents=True)
    shutil.copy(ROOT / ".dvc" / "config", project / ".dvc")
    (project / ".dvc" / "tmp" / "rwlock").write_text('{"write": {')
    (project / "dvc.yaml").write_text(DVC_YAML)
    done, asked = make(folder, "run", **real)
    assert done.returncode == 0, done.stdout + done.stderr
    assert asked[:2] == [(str(project), "-m pipeline.rwlock"), (str(project), "-m dvc repro")]
    assert asked[2][1].startswith("-c open('out'"), "the stage ran with the project's own Python"
    assert (project / "out").read_text() == "1"
    assert done.stdout.startswith("removed .dvc/tmp/rwlock: ")
    assert f"report    {project}/artifacts/evaluation/report.html\n" in done.stdout
    assert f"registry  sqlite:///{project}/.glance/mlflow.db   (make ui)\n" in done.stdout
