"""What the tests of the page need: a pair for the shipped teacher, in a project with a registry of its own."""

import json
import os
import shutil
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


def write_pair(folder: Path) -> Bundle:
    """Writes a pair with random adapters for the shipped teacher, in the project `folder`, the working directory."""
    own = params.load()
    backbone = backbones.load(own.teacher.base, "cpu", parts=("transformer",))
    partition = compute(own, backbone.schedule(own.teacher.height, own.teacher.width))
    trained = {phase: folder / "trained" / phase for phase in PHASES}
    for seed, phase in enumerate(PHASES):
        write_adapter(backbone, trained[phase], seed=seed)
    return write.bundle(folder / PAIR, trained, partition, own.teacher, own.student)


def write_long(folder: Path) -> None:
    """Writes the same pair for a teacher of 1000 steps."""
    shutil.copytree(folder / PAIR, folder / LONG)
    manifest = json.loads((folder / LONG / "glance.json").read_text())
    (folder / LONG / "glance.json").write_text(json.dumps(manifest | {"teacher_steps": 1000}))


def make_project(folder: Path, database: Path) -> Path:
    """A project with the shipped teacher, a pair, a pair whose teacher takes long, and a registered version.

    Args:
        folder: Where it goes.
        database: With the registry's tables.
    """
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
        (folder / ".glance").mkdir()
        shutil.copy(database, folder / ".glance/mlflow.db")
        made = write_pair(folder)
        write_long(folder)
        digests = {"bundle_digest": bundle_digest(made.folder), "teacher_digest": made.base_digest}
        rows = {"teacher": {"nfe": 100}, "student": {"nfe": 8, **RETENTION}}
        times = {"teacher": {"speedup_batch1": 1.0}, "student": {"speedup_batch1": 10.0}}
        evaluation = folder / "measured"
        evaluation.mkdir()
        (evaluation / "metrics.json").write_text(json.dumps({"arms": rows, **digests}))
        (evaluation / "latency.json").write_text(json.dumps({"arms": times, **digests}))
        register(params.load(), Path(PAIR), evaluation, ROOT / "dvc.lock")
    return folder
