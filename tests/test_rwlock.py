"""A DVC that was killed leaves nothing behind that stops the next one: real DVC, in a repository of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
from click.testing import CliRunner

from pipeline import cli, diagnosis, rwlock
from tests.conftest import ROOT, Project, slow

HALF = '{"write": {"/somewhere/out": {"pid": 12'
BROKEN = [HALF, "", "[]", '{"write": null}', '{"read": {"x": [1]}}', "\0\0\0"]
DVC_YAML = """\
stages:
  copy:
    cmd: python -c "import shutil, time; time.sleep(SECONDS); shutil.copy('in', 'out')"
    deps: [in]
    outs: [out]
"""


@pytest.fixture(scope="module")
@slow
def repository(tmp_path_factory):
    """A repository of one stage."""
    folder = tmp_path_factory.mktemp("repository")
    project = Project(folder / "clone", folder)
    project.folder.mkdir()
    project.succeed("git", "init", "--quiet")
    project.succeed("dvc", "init", "--quiet")
    shutil.copy(ROOT / ".dvc" / "config", project.folder / ".dvc" / "config")
    (project.folder / "dvc.yaml").write_text(DVC_YAML.replace("SECONDS", "0"))
    (project.folder / "in").write_text("1")
    project.succeed("dvc", "repro")
    return project


@pytest.fixture
def record(repository, monkeypatch):
    """DVC's record in that repository, which is the working directory."""
    monkeypatch.chdir(repository.folder)
    file = repository.folder / ".dvc" / "tmp" / "rwlock"
    yield file
    file.unlink(missing_ok=True)


def test_dvc_goes_on_after_a_repair(repository, record):
    record.write_text(HALF)
    failed = repository.run("dvc", "repro")
    assert failed.returncode != 0 and "JSON structure is corrupted" in failed.stdout
    assert not diagnosis.dvc_record().ok and "glance doctor --fix" in diagnosis.dvc_record().fix
    said = repository.succeed(sys.executable, "-m", "pipeline.rwlock")
    assert said == f"removed .dvc/tmp/rwlock: {rwlock.BROKEN}\n"
    assert diagnosis.dvc_record().ok and "up to date" in repository.succeed("dvc", "repro")
    assert repository.succeed(sys.executable, "-m", "pipeline.rwlock") == ""


@pytest.mark.parametrize("content", BROKEN)
def test_whatever_dvc_cannot_read_is_removed(tmp_path, content):
    record = tmp_path / ".dvc" / "tmp" / "rwlock"
    record.parent.mkdir(parents=True)
    record.write_text(content)
    assert rwlock.repair(tmp_path) == rwlock.BROKEN
    assert not record.exists() and rwlock.repair(tmp_path) is None


def test_doctor_repairs_when_asked(repository, record):
    record.write_text(HALF)
    assert f"removed .dvc/tmp/rwlock: {rwlock.BROKEN}" in CliRunner().invoke(cli.main, ["doctor", "--fix"]).output
    assert not record.exists()


def entries(pid):
    return {"read": {"/in": [{"pid": pid, "cmd": "dvc repro"}]}, "write": {"/out": {"pid": pid, "cmd": "dvc repro"}}}


def test_entries_of_another_program_that_got_the_number_since_are_removed(repository, record):
    out = str(repository.folder / "out")
    with subprocess.Popen(["sleep", "60"]) as other:
        record.write_text(json.dumps({"read": {}, "write": {out: {"pid": other.pid, "cmd": "dvc repro"}}}))
        assert rwlock.fault(repository.folder) is None, "it may be the program that wrote it"
        old = psutil.Process(other.pid).create_time() - 60
        os.utime(record, (old, old))
        assert "is busy" in repository.run("dvc", "repro").stdout
        os.utime(record, (old, old))
        other_has_it = f"by the process number {other.pid}, which another program has now"
        assert rwlock.repair(repository.folder) == f"it names a killed `dvc repro` {other_has_it}"
        assert "up to date" in repository.succeed("dvc", "repro")
        other.kill()


def test_entries_of_the_dead_are_left_to_dvc(repository, record):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    record.write_text(json.dumps(entries(dead.pid)))
    assert rwlock.fault(repository.folder) is None and rwlock.repair(repository.folder) is None
    assert "up to date" in repository.succeed("dvc", "repro")


def commands(process):
    """The arguments of all programs that a process has started."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += child.cmdline()
    return found


@pytest.fixture
def busy(repository, record):
    """A DVC that runs a stage of the repository: its process."""
    yaml = repository.folder / "dvc.yaml"
    yaml.write_text(DVC_YAML.replace("SECONDS", "60"))
    process = repository.start("dvc", "repro")
    while not any("time.sleep(60)" in part for part in commands(process)):  # DVC writes the record before it
        assert process.poll() is None
        time.sleep(0.05)
    yield process
    os.killpg(process.pid, 9)
    process.communicate()
    yaml.write_text(DVC_YAML.replace("SECONDS", "0"))


def test_nothing_is_removed_while_dvc_runs(repository, record, busy):
    record.write_text(HALF)
    with pytest.raises(ValueError, match=r"rwlock is unusable while DVC runs here \(process \d+: dvc repro\): "):
        rwlock.repair(repository.folder)
    assert record.read_text() == HALF
    refused = repository.run(sys.executable, "-m", "pipeline.rwlock")
    assert refused.returncode == 1
    assert re.fullmatch(r"Error: .*rwlock is unusable while DVC runs here.*\n", refused.stdout)


def test_nothing_is_removed_while_dvc_holds_its_lock(repository, record):
    from dvc.lock import make_lock

    record.write_text(HALF)
    with make_lock(str(record.with_name("lock"))):
        with pytest.raises(ValueError, match=r"while DVC runs here \(it holds its lock\)"):
            rwlock.repair(repository.folder)
    assert record.exists()


def test_another_repositorys_dvc_does_not_count(busy, tmp_path):
    assert rwlock.running(tmp_path) is None and f"process {busy.pid}: dvc repro" == rwlock.running(tmp_path.cwd())


def test_checkpoints_are_not_removed_while_dvc_runs(repository, busy):
    kept = repository.folder / ".glance" / "checkpoints" / "x"
    kept.parent.mkdir(parents=True)
    kept.touch()
    done = CliRunner().invoke(cli.main, ["clean", "--all"])
    what = f"--all would delete the checkpoints of a running DVC (process {busy.pid}: dvc repro)"
    assert done.exit_code == 1 and done.stderr == f"Error: {what}: wait for its end or stop it\n" and kept.exists()
    assert CliRunner().invoke(cli.main, ["clean"]).exit_code == 0
