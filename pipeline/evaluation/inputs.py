"""Reads what an evaluation starts from: the teacher, the bundle, the controls, the partition, the loss histories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline import adapters, artifacts, backbones, controls
from pipeline.backbones.base import Backbone
from pipeline.export import PHASES, Bundle, bundle_digest
from pipeline.params import Params
from pipeline.partition import Partition

History = list[tuple[int, float]]
"""(train_step, loss)."""


@dataclass(frozen=True)
class Inputs:
    """What the arms are made of, and where it comes from.

    Attributes:
        backbone: The teacher, whole.
        bundle: The pair.
        partition: The student's path on the teacher's steps.
        states: Every adapter with folded scale, by name.
        adapter_digests: Digest of each adapter's file.
        histories: Losses by adapter.
        teacher_digest: Of the transformer.
        bundle_digest: Of the bundle.
        origin: What an image of the bare backbone depends on besides its noise levels, prompt and seed.
    """

    backbone: Backbone
    bundle: Bundle
    partition: Partition
    states: Mapping[str, adapters.State]
    adapter_digests: Mapping[str, str]
    histories: Mapping[str, History]
    teacher_digest: str
    bundle_digest: str
    origin: Mapping


def read(params: Params) -> Inputs:
    """Reads the artifacts of the earlier stages.

    Raises:
        ValueError: If an artifact is missing or broken, or the bundle belongs to another teacher.
    """
    bundle = Bundle.load(artifacts.BUNDLE)
    teacher_digest = backbones.digest(params.teacher.path)
    if bundle.base_digest != teacher_digest:
        raise ValueError(
            f"{artifacts.BUNDLE} must belong to the teacher in {params.teacher.path}, whose digest is {teacher_digest},"
            f" got a bundle for {bundle.base_digest}"
        )
    partition = Partition.from_json(artifacts.read_json(artifacts.PARTITION))
    states, files = dict(bundle.states()), {phase: bundle.folder / f"{phase}.safetensors" for phase in PHASES}
    for job in controls.jobs(params, partition):
        folder = artifacts.TRAIN_CONTROLS / job.name
        states[job.name] = adapters.read(folder)[0]
        files[job.name] = folder / adapters.WEIGHTS
    teacher = params.teacher
    backbone = backbones.load(
        teacher.path, params.runtime.device, dtype=teacher.dtype, quantization=teacher.quantization
    )
    return Inputs(
        backbone,
        bundle,
        partition,
        states,
        {name: artifacts.file_digest(file) for name, file in files.items()},
        histories(artifacts.TRAIN_SLOW, artifacts.TRAIN_FAST, artifacts.TRAIN_CONTROLS),
        teacher_digest,
        bundle_digest(artifacts.BUNDLE),
        {
            "teacher": artifacts.folder_digest(params.teacher.path),
            "code": artifacts.code_digest(),
            "device": backbone.device.type,
            "dtype": str(backbone.dtype),
            "quantization": teacher.quantization,
            "height": params.teacher.height,
            "width": params.teacher.width,
            "max_sequence_length": params.teacher.max_sequence_length,
            "guidance_scale": params.teacher.guidance_scale,
            "negative_prompt": params.teacher.negative_prompt,
        },
    )


def histories(slow: Path, fast: Path, controls_folder: Path) -> dict[str, History]:
    """The losses of every adapter from the history.csv of its stage; a stage without one gives none."""
    found: dict[str, History] = {}
    for name, folder in (("slow", slow), ("fast", fast), ("", controls_folder)):
        file = folder / "history.csv"
        frame = pd.read_csv(file) if file.is_file() else pd.DataFrame()
        if frame.empty:
            continue
        groups = frame.groupby("arm", sort=False) if "arm" in frame else [(name, frame)]
        for arm, rows in groups:
            found[str(arm)] = list(zip(rows["train_step"].tolist(), rows["loss"].tolist(), strict=True))
    return found
