"""A project as `dvc repro` leaves it before `register`: a tiny bundle, an evaluation, histories and a dvc.lock."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from pipeline.bundle.manifest import bundle_digest
from pipeline.registry import connection

if TYPE_CHECKING:
    from mlflow import MlflowClient

ROOT = Path(__file__).parent.parent
LOCK = """\
schema: '2.0'
stages:
  train_slow:
    cmd: python -m stages.train_slow
    deps:
    - path: artifacts/trajectories
      hash: md5
      md5: 11aa.dir
      size: 10
      nfiles: 2
    params:
      params.yaml:
        train_slow:
          learning_rate: 0.001
          train_steps: 3
        training.rank: 2
    outs:
    - path: artifacts/train_slow
      hash: md5
      md5: 22bb.dir
      size: 10
      nfiles: 2
  evaluate:
    cmd: python -m stages.evaluate
    deps:
    - path: artifacts/bundle
      hash: md5
      md5: 33cc.dir
    outs:
    - path: artifacts/evaluation/images
      hash: md5
      md5: 44dd.dir
    - path: artifacts/evaluation/metrics.json
      hash: md5
      md5: 55ee
  time_arms:
    cmd: python -m stages.time_arms
    deps:
    - path: artifacts/bundle
      hash: md5
      md5: 33cc.dir
    outs:
    - path: artifacts/timing/latency.json
      hash: md5
      md5: 66ff
  register:
    cmd: python -m stages.register
    deps:
    - path: artifacts/bundle
      md5: 33cc.dir
"""


def client() -> "MlflowClient":
    """MLflow's own client of the project's registry."""
    return connection.connect().client


def write_project(folder: Path, seed: int = 0, retention: float = 0.97) -> Path:
    """Writes what `register` reads into `folder`; another seed is another bundle."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "dvc.lock").write_text(LOCK)
    write_bundle(folder / "artifacts/bundle", seed)
    training = folder / "artifacts/train_slow"
    training.mkdir(parents=True, exist_ok=True)
    (training / "history.csv").write_text("train_step,loss,learning_rate\n1,0.5,0.001\n2,0.25,0.0005\n")
    (training / "adapter_model.safetensors").write_bytes(b"stays with DVC")
    write_evaluation(folder, retention)
    return folder


def write_evaluation(folder: Path, retention: float) -> None:
    """Writes metrics.json and latency.json of the bundle that is there, and a picture."""
    evaluation = folder / "artifacts/evaluation"
    (evaluation / "images").mkdir(parents=True, exist_ok=True)
    arms = {
        "teacher": {"nfe": 100, "score": 0.96, "retention": 1.0, "psnr": None},
        "student": {"nfe": 8, "score": 0.93, "retention": retention, "psnr": 24.5},
    }
    measured = {"bundle_digest": bundle_digest(folder / "artifacts/bundle"), "teacher_digest": _base(folder)}
    (evaluation / "metrics.json").write_text(json.dumps({"arms": arms, **measured}))
    times = {"teacher": {"speedup_batch1": 1.0}, "student": {"speedup_batch1": 9.5}}
    (folder / "artifacts/timing").mkdir(exist_ok=True)
    (folder / "artifacts/timing/latency.json").write_text(json.dumps({"arms": times, **measured}))
    (evaluation / "images/grid.png").write_bytes(b"\x89PNG")


def _base(folder: Path) -> str:
    return json.loads((folder / "artifacts/bundle/glance.json").read_text())["base_digest"]


def write_bundle(folder: Path, seed: int = 0, **changes: object) -> Path:
    """Writes a bundle of 1 + 1 steps with random adapters; `changes` replace keys of glance.json."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    for phase in ("slow", "fast"):
        module = "transformer.transformer_blocks.0.attn.to_q"
        tensors = {
            f"{module}.lora_A.weight": torch.randn(2, 32, generator=generator),
            f"{module}.lora_B.weight": torch.randn(32, 2, generator=generator),
        }
        save_file(tensors, folder / f"{phase}.safetensors")
    adapter = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["attn.to_q"]}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    phases = changes.get(
        "phases",
        [
            {"name": "slow", "file": "slow.safetensors", "steps": [0], "u": [1.0], "sigmas": [1.0, 0.6]},
            {"name": "fast", "file": "fast.safetensors", "steps": [2], "u": [0.5], "sigmas": [0.6, 0.0]},
        ],
    )
    guidance = {"teacher_true_cfg_scale": 3.0, "student_true_cfg_scale": 1.0, "guidance_scale": 3.5}
    manifest = {
        "format": 3,
        "base_model": "artifacts/teacher",
        "base_digest": "sha256:" + 64 * "0",
        "loras": [],
        "family": "flux",
        "base_license": "apache-2.0",
        "license": "apache-2.0",
        "u": [1.0, 0.5],
        "sigmas": [*(sigma for phase in phases for sigma in phase["sigmas"][:-1]), 0.0],
        "steps": [step for phase in phases for step in phase["steps"]],
        "teacher_steps": 4,
        "phases": phases,
        "handoffs": [
            {"step": phase["steps"][0], "u": phase["u"][0], "sigma": phase["sigmas"][0]} for phase in phases[1:]
        ],
        "height": 64,
        "width": 64,
        "max_sequence_length": 16,
        "dtype": "fp32",
        "guidance": {**guidance, "negative_prompt": ""},
        "rank": 2,
        "scale": 1.0,
        "path": "consistent",
        "solver": "euler",
        "retention": None,
        **changes,
    }
    (folder / "glance.json").write_text(json.dumps(manifest))
    (folder / "README.md").write_text("# A bundle for tests\n")
    return folder
