"""Whole training stages, in the arithmetic of this CPU: a killed one runs in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import adapters, artifacts
from pipeline.training import loop
from tests.recorded import ROOT, record_tiny, workplace


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record_tiny(tmp_path_factory.mktemp("recorded"))


def kill_in_training(folder: Path, stage: str) -> None:
    """Starts a stage by its real command and kills it once it has kept a checkpoint."""
    environment = {key: value for key, value in os.environ.items() if key != "DVC_ROOT"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"stages.{stage}"]
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not list((folder / ".glance").rglob(loop.CHECKPOINT)):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow  # whole stages, killed and run again
def test_a_stage_that_is_killed_goes_on_and_leaks_nothing_into_other_parameters(recorded, tmp_path, run_stage):
    slow, other = {"train_steps": 60}, {"train_steps": 60, "learning_rate": 0.005}
    undisturbed = workplace(tmp_path / "undisturbed", recorded, train_slow=slow)
    run_stage(undisturbed, "train_slow")
    expected = contents(undisturbed / artifacts.TRAIN_SLOW)
    assert expected.keys() == {adapters.WEIGHTS, adapters.CONFIG, "history.csv"}

    killed = workplace(tmp_path / "killed", recorded, train_slow=slow)
    kill_in_training(killed, "train_slow")
    assert not (killed / artifacts.TRAIN_SLOW).exists()

    changed = workplace(tmp_path / "changed", recorded, train_slow=other)  # meets what the killed run left
    (killed / ".glance").rename(changed / ".glance")
    run_stage(changed, "train_slow")
    clean = workplace(tmp_path / "clean", recorded, train_slow=other)
    run_stage(clean, "train_slow")
    assert contents(changed / artifacts.TRAIN_SLOW) == contents(clean / artifacts.TRAIN_SLOW) != expected

    (changed / ".glance").rename(killed / ".glance")
    run_stage(killed, "train_slow")
    assert contents(killed / artifacts.TRAIN_SLOW) == expected
    assert not list((killed / ".glance").rglob(loop.CHECKPOINT))  # it was found, used and removed


def test_the_other_training_stages_run(recorded, tmp_path, run_stage):
    folder = workplace(tmp_path / "stages", recorded)
    run_stage(folder, "train_fast")
    run_stage(folder, "train_controls")
    assert len((folder / artifacts.TRAIN_FAST / "history.csv").read_text().splitlines()) == 9
    made = contents(folder / artifacts.TRAIN_CONTROLS)
    arms = {name.split("/")[0] for name in made if "/" in name}
    assert arms == {"single", "official_slow", "official_fast"}
    assert len(made["history.csv"].decode().splitlines()) == 1 + 16 + 60 + 60
    assert not list((folder / artifacts.TRAIN_FAST.parent).glob(".*"))
