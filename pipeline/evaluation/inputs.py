"""Reads what an evaluation starts from: the teacher, the bundle, the controls, the loss histories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from pipeline import adapters, artifacts, backbones, loras
from pipeline.backbones.base import Backbone
from pipeline.export import MANIFEST, PHASES, Bundle, bundle_digest
from pipeline.params import Params
from pipeline.rivals import chosen

History = list[tuple[int, float]]
"""(train_step, loss)."""


@dataclass(frozen=True)
class Source:
    """Which pair an evaluation measures, beside which controls.

    Attributes:
        bundle: The folder of the pair.
        controls: The control arms that have adapters.
        histories: Losses by adapter.
        trained_here: Whether this project's stages trained the pair.
    """

    bundle: Path
    controls: tuple[str, ...]
    histories: Mapping[str, History]
    trained_here: bool


def of_stages(params: Params) -> Source:
    """What the stages before evaluate wrote.

    Raises:
        ValueError: A control is unknown.
    """
    found = histories(artifacts.TRAIN_SLOW, artifacts.TRAIN_FAST, artifacts.TRAIN_CONTROLS)
    return Source(artifacts.BUNDLE, tuple(chosen(params.train_controls.arms)), found, True)


def of_bundle(params: Params, folder: Path) -> Source:
    """A pair that lies anywhere, beside the controls that are there and run as it does.

    Raises:
        ValueError: The folder holds no bundle, or a control is unknown.
    """
    bundle, known = Bundle.load(folder), chosen(params.train_controls.arms)
    own = Bundle.load(artifacts.BUNDLE) if (artifacts.BUNDLE / MANIFEST).is_file() else None
    if own is None or not _run_alike(own, bundle):
        return Source(folder, (), {}, False)
    trained_here = bundle_digest(own.folder) == bundle_digest(folder)
    there = {name: all(map(_is_adapter, map(_control, rival.adapters))) for name, rival in known.items()}
    controls = tuple(name for name in known if there[name])
    shown = {adapter for name in controls for adapter in known[name].adapters} | set(PHASES if trained_here else ())
    losses = histories(artifacts.TRAIN_SLOW, artifacts.TRAIN_FAST, artifacts.TRAIN_CONTROLS)
    return Source(folder, controls, {name: loss for name, loss in losses.items() if name in shown}, trained_here)


@dataclass(frozen=True)
class Inputs:
    """What the arms are made of, and where it comes from.

    Attributes:
        backbone: The teacher, whole.
        bundle: The pair.
        controls: The control arms that have adapters.
        states: Every adapter with folded scale, by name.
        adapter_digests: Digest of each adapter's file.
        histories: Losses by adapter.
        trained_here: Whether this project's stages trained the pair.
        teacher_digest: Of the transformer and what is fused into it.
        bundle_digest: Of the bundle.
        origin: What an image of the bare backbone depends on besides its noise levels, prompt and seed.
    """

    backbone: Backbone
    bundle: Bundle
    controls: tuple[str, ...]
    states: Mapping[str, adapters.State]
    adapter_digests: Mapping[str, str]
    histories: Mapping[str, History]
    trained_here: bool
    teacher_digest: str
    bundle_digest: str
    origin: Mapping


def read(params: Params, source: Source) -> Inputs:
    """Reads a pair, its controls and its teacher.

    Raises:
        ValueError: If an artifact is missing or broken, or the bundle belongs to another teacher or was made for
            another way to run it.
    """
    bundle, teacher = Bundle.load(source.bundle), params.teacher
    teacher_digest = backbones.digest(teacher.path, teacher.loras)
    if bundle.base_digest != teacher_digest:
        raise ValueError(
            f"{bundle.folder} must belong to the teacher in {teacher.path}, whose digest is {teacher_digest},"
            f" got a bundle for {bundle.base_digest}"
        )
    _check_alike(params, bundle)
    states, files = dict(bundle.states()), {phase: bundle.folder / f"{phase}.safetensors" for phase in PHASES}
    for rival in chosen(source.controls).values():
        for name in dict.fromkeys(rival.adapters):
            states[name] = adapters.read(_control(name))[0]
            files[name] = _control(name) / adapters.WEIGHTS
    backbone = backbones.load(
        teacher.path,
        params.runtime.device,
        dtype=teacher.dtype,
        quantization=teacher.quantization,
        loras=teacher.loras,
        offload=params.runtime.offload,
    )
    shapes = adapters.linear_shapes(backbone.transformer)
    for name, state in states.items():  # now, not after the teacher's images
        adapters.check(state, shapes, str(files[name]), f"the transformer of {teacher.path}")
    return Inputs(
        backbone,
        bundle,
        source.controls,
        states,
        {name: artifacts.file_digest(file) for name, file in files.items()},
        source.histories,
        source.trained_here,
        teacher_digest,
        bundle_digest(bundle.folder),
        {
            "teacher": artifacts.folder_digest(teacher.path),
            "loras": loras.content(teacher.loras),
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


def _control(name: str) -> Path:
    return artifacts.TRAIN_CONTROLS / name


def _is_adapter(folder: Path) -> bool:
    return all((folder / file).is_file() for file in (adapters.WEIGHTS, adapters.CONFIG))


def _run_alike(own: Bundle, other: Bundle) -> bool:
    """Whether two pairs are run in the same way: controls trained beside one are then controls of the other."""
    labels = ("folder", "base_model", "base_license", "rank")
    return replace(own, **{name: getattr(other, name) for name in labels}) == other


def _check_alike(params: Params, bundle: Bundle) -> None:
    """The arms share resolution, texts and the number of teacher steps: the student must be made for those."""
    teacher = params.teacher
    for key, made_for, got in (
        ("height", bundle.height, teacher.height),
        ("width", bundle.width, teacher.width),
        ("max_sequence_length", bundle.max_sequence_length, teacher.max_sequence_length),
        ("dtype", bundle.dtype, teacher.dtype),
        ("steps", bundle.teacher_steps, teacher.steps),
        ("guidance_scale", bundle.guidance.guidance_scale, teacher.guidance_scale),
        ("negative_prompt", bundle.guidance.negative_prompt, teacher.negative_prompt),
    ):
        if got != made_for:
            raise ValueError(f"teacher.{key} must be {made_for!r} as in {bundle.folder / MANIFEST}, got {got!r}")
