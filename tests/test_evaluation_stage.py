"""`python -m stages.evaluate` in a folder of its own."""

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


def evaluate(folder):
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "DVC_ROOT": str(folder)}
    command = [sys.executable, "-m", "stages.evaluate"]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.slow  # a whole stage, twice
def test_the_stage_writes_every_output_and_leaves_only_what_others_can_use(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = small_params()
    make_artifacts(settings)
    plain = {name: {k: list(v) if isinstance(v, tuple) else v for k, v in section.items()}
             for name, section in asdict(settings).items()}  # fmt: skip
    YAML().dump(plain, tmp_path / "params.yaml")

    done = evaluate(tmp_path)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in artifacts.EVALUATION.iterdir()}
    assert names == {"metrics.json", "arms.csv", "quality_over_nfe.csv", "prompts.csv", "grid.png", "report.html"}
    metrics = artifacts.read_json(artifacts.EVALUATION / "metrics.json")
    assert metrics["arms"]["teacher"]["nfe"] == 20 and metrics["arms"]["student"]["nfe"] == 4
    assert metrics["arms"]["student"]["speedup_batch1"] > 1
    assert not list((tmp_path / ".glance" / "checkpoints" / "evaluate").iterdir())
    cached = list((tmp_path / ".glance" / "cache" / "evaluation").glob("*/*.safetensors"))
    assert len(cached) == 4 * 4, "two shards of prompts, two of seeds: the teacher and the base in three ways"

    (artifacts.BUNDLE / "slow.safetensors").unlink()
    failed = evaluate(tmp_path)
    assert failed.returncode == 1 and "slow.safetensors is missing" in failed.stderr
    assert "Traceback" not in failed.stderr
