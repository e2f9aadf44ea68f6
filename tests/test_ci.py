"""The bar of .ci/check_metrics.py passes a good result and names every way of missing it."""

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

RIVAL = {"nfe": 8, "score": 0.6, "retention": 0.65, "psnr": 22.0, "ssim": 0.8, "fd_scenes": 5.0}
GOOD = {
    "arms": {
        "teacher": RIVAL | {"nfe": 100, "score": 0.95, "retention": 1.0},
        "student": RIVAL | {"score": 0.93, "retention": 0.98, "psnr": 27.0, "ssim": 0.9, "fd_scenes": 1.0},
        "base_unguided": dict(RIVAL),
        "base_guided_equal_cost": dict(RIVAL),
    },
    "teacher_tasks": {f"task_{i}": {"score": 0.9, "n": 84} for i in range(6)},
}


def check(metrics, folder):
    metrics = deepcopy(metrics)
    times = {arm: {"speedup_batch1": row.pop("speedup_batch1", 10.0)} for arm, row in metrics["arms"].items()}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "latency.json").write_text(json.dumps({"arms": times}))
    command = [sys.executable, ".ci/check_metrics.py", folder]
    return subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


def test_a_good_result_passes(tmp_path):
    result = check(GOOD, tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arm", "key", "value", "message"),
    [
        ("student", "retention", 0.94, "student.retention must be at least 0.95, got 0.94"),
        ("student", "speedup_batch1", 7.9, "student.speedup_batch1 must be at least 8, got 7.9"),
        ("student", "nfe", 16, "student.nfe must be 8, got 16"),
        ("base_unguided", "score", 0.93, "student.score must beat base_unguided's 0.93, got 0.93"),
        ("base_guided_equal_cost", "fd_scenes", 0.9, "student.fd_scenes must beat base_guided_equal_cost's 0.9, got 1"),
    ],
)
def test_a_miss_is_named(tmp_path, arm, key, value, message):
    metrics = deepcopy(GOOD)
    metrics["arms"][arm][key] = value
    result = check(metrics, tmp_path)
    assert (result.returncode, result.stderr) == (1, f"{message}\n")


def test_a_weak_teacher_is_named(tmp_path):
    metrics = deepcopy(GOOD)
    metrics["teacher_tasks"]["task_3"]["score"] = 0.7
    metrics["arms"]["teacher"]["score"] = 0.89
    named = check(metrics, tmp_path).stderr
    assert named == "teacher.score must be at least 0.9, got 0.89\nteacher's task_3 must be at least 0.8, got 0.7\n"
