"""Two runs are held against each other, file by file and figure by figure."""

import json
import shutil

import pytest
from click.testing import CliRunner

from measurements import same_bytes
from pipeline import artifacts


@pytest.fixture
def runs(tmp_path):
    """A run, and a copy of it."""
    for folder in same_bytes.FOLDERS:
        (tmp_path / "before" / folder).mkdir(parents=True)
        (tmp_path / "before" / folder / "x").write_text(str(folder))
    metrics = {"arms": {"student": {"psnr": 31.9, "speedup_batch1": 9.3, "loop_ms_batch1": 1.0}}}
    artifacts.write_json(tmp_path / "before" / artifacts.EVALUATION / "metrics.json", metrics)
    shutil.copytree(tmp_path / "before", tmp_path / "after")
    return tmp_path / "before", tmp_path / "after"


def compare(before, after):
    done = CliRunner().invoke(same_bytes.main, [str(before), "--after", str(after)])
    return done.exit_code, done.output.splitlines()


def test_equal_runs_have_no_differences_whatever_the_clock_said(runs):
    file = runs[1] / artifacts.EVALUATION / "metrics.json"
    artifacts.write_json(file, {"arms": {"student": {"psnr": 31.9}}})
    assert compare(*runs) == (0, ["0 differences"])


def test_every_difference_is_named(runs):
    before, after = runs
    (after / artifacts.TRAIN_SLOW / "x").write_text("other")
    (after / artifacts.BUNDLE / "x").unlink()
    (before / artifacts.PARTITION.parent / "y").write_text("y")
    metrics = after / artifacts.EVALUATION / "metrics.json"
    metrics.write_text(json.dumps({"arms": {"student": {"psnr": 31.8}, "new": {"psnr": 1}}}))
    assert compare(before, after) == (
        1,
        [
            f"artifacts/partition/y: missing from {after}",
            "artifacts/train_slow/x: other bytes",
            f"artifacts/bundle/x: missing from {after}",
            "artifacts/evaluation/metrics.json: new.psnr was None, is 1",
            "artifacts/evaluation/metrics.json: student.psnr was 31.9, is 31.8",
            "5 differences",
        ],
    )
