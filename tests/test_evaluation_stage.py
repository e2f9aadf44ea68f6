"""The four stages of an evaluation by their real commands, in a folder of their own."""

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline import artifacts
from tests.evaluation_case import make_artifacts, small_params

ROOT = Path(__file__).parent.parent
STAGES = ("generate_images", "evaluate", "time_arms", "report")
TABLES = {"metrics.json", "arms.csv", "quality_over_nfe.csv", "prompts.csv", "grid.png"}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a stage in a folder with what the stages before the evaluation wrote."""
    monkeypatch.chdir(tmp_path)
    settings = small_params()
    make_artifacts(settings)
    plain = {name: {k: list(v) if isinstance(v, tuple) else v for k, v in section.items()}
             for name, section in asdict(settings).items()}  # fmt: skip
    YAML().dump(plain, tmp_path / "params.yaml")
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "DVC_ROOT": str(tmp_path)}

    def stage(name):
        command = [sys.executable, "-m", f"stages.{name}"]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)

    return stage


@pytest.mark.slow  # whole stages, each in a process of its own
def test_the_stages_write_their_outputs_and_say_what_is_missing(run):
    missing = run("evaluate")
    assert missing.returncode == 1 and "artifacts/images/index.json" in missing.stderr
    for name in STAGES:
        done = run(name)
        assert done.returncode == 0, done.stderr
    assert {path.name for path in artifacts.EVALUATION.iterdir()} == {*TABLES, "report.html"}
    metrics, times = (artifacts.read_json(file) for file in (artifacts.EVALUATION / "metrics.json", artifacts.LATENCY))
    assert metrics["arms"]["teacher"]["nfe"] == 20 and metrics["arms"]["student"]["nfe"] == 4
    assert times["arms"]["student"]["speedup_batch1"] > 0
    assert not any("speedup" in key or "_ms_" in key for row in metrics["arms"].values() for key in row)
    assert not Path(".glance/checkpoints").exists(), "what a killed generation leaves is in the cache"

    (artifacts.BUNDLE / "slow.safetensors").unlink()
    failed = run("generate_images")
    assert failed.returncode == 1 and "slow.safetensors is missing" in failed.stderr
    assert "Traceback" not in failed.stderr
