"""What the tests of the page need: a pair for the shipped teacher, in a project with a registry of its own."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import backbones, params
from pipeline.bundle import write
from pipeline.bundle.manifest import Bundle, bundle_digest
from pipeline.partition import PHASES, compute
from pipeline.registry import connection
from pipeline.registry.registering import register
from tests.pairs import write_adapter

ROOT = Path(__file__).parent.parent
PAIR, LONG = "artifacts/bundle", "long"
RETENTION = {"retention": 0.964, "retention_low": 0.941, "retention_high": 0.985}


def write_pair(folder: Path, bundle: str, steps: int = 50) -> Bundle:
    """Writes a pair with random adapters for the shipped teacher, in the project `folder`, the working directory.

    Args:
        folder: The project.
        bundle: The bundle's folder in it.
        steps: Of the teacher.
    """
    own = params.load()
    own = replace(own, teacher=replace(own.teacher, steps=steps), trajectories=replace(own.trajectories, steps=steps))
    backbone = backbones.load(own.teacher.base, "cpu", parts=("transformer",))
    partition = compute(own, backbone.schedule(own.teacher.height, own.teacher.width))
    trained = {phase: folder / "trained" / bundle / phase for phase in PHASES}
    for seed, phase in enumerate(PHASES):
        write_adapter(backbone, trained[phase], seed=seed)
    return write.bundle(folder / bundle, trained, partition, own.teacher, own.student)


def make_project(folder: Path) -> Path:
    """A project with the shipped teacher, a pair, a pair whose teacher takes long, and a registered version."""
    folder.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    (folder / "artifacts").mkdir()
    shutil.copytree(ROOT / "artifacts/teacher", folder / "artifacts/teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DVC_ROOT", str(folder))
        for name in [name for name in os.environ if name.startswith("MLFLOW")] + list(connection.ENVIRONMENT):
            patch.setenv(name, "")
            patch.delenv(name)
        made = write_pair(folder, PAIR)
        write_pair(folder, LONG, steps=1000)
        digests = {"bundle_digest": bundle_digest(made.folder), "teacher_digest": made.base_digest}
        rows = {"teacher": {"nfe": 100}, "student": {"nfe": 8, **RETENTION}}
        times = {"teacher": {"speedup_batch1": 1.0}, "student": {"speedup_batch1": 10.0}}
        evaluation = folder / "measured"
        evaluation.mkdir()
        (evaluation / "metrics.json").write_text(json.dumps({"arms": rows, **digests}))
        (evaluation / "latency.json").write_text(json.dumps({"arms": times, **digests}))
        register(params.load(), Path(PAIR), evaluation, ROOT / "dvc.lock")
    return folder
