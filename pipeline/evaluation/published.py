"""Published rivals as arms: the base with the weights that others published, run as their authors run them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline import adapters
from pipeline.adapters import lora_files
from pipeline.evaluation.arms import Arm
from pipeline.evaluation.recipes import titles
from pipeline.flow.rival_levels import rival_levels
from pipeline.flow.sampling import StepPlan
from pipeline.flow.schedule import Schedule
from pipeline.rival_params import Published
from pipeline.styles import RivalFile

if TYPE_CHECKING:
    from pipeline.backbones.stock import StockBackbone


def check_name(name: str) -> None:
    """Raises ValueError if an arm of every project has the name of a rival."""
    if name in titles():
        raise ValueError(f"rivals must have names that no other arm has, got {name}")


def arm(name: str, rival: Published, teacher: Schedule) -> Arm:
    """The arm of a published rival.

    Args:
        name: The rival's name in params.yaml.
        rival: Its weights and settings.
        teacher: Base levels to sigmas of the teacher, at the evaluated resolution.

    Raises:
        ValueError: The name is that of another arm, or the levels cannot be had in so few steps.
    """
    check_name(name)
    try:
        sigmas = rival_levels(teacher, rival.steps, rival.shift, rival.terminal, rival.sigmas)
    except ValueError as error:
        raise ValueError(f"rivals.{name}: {error}") from error
    files = ", ".join(file.file for file in rival.files)
    return Arm(
        name=name,
        title=f"{name[0].upper()}{name[1:]}".replace("_", " "),
        question=f"Published weights: {files}. Licence: {rival.license}.",
        plan=StepPlan(sigmas, tuple(_adapter(name, i) for i in rival.active), solver=rival.sampler),
        true_cfg_scale=rival.true_cfg_scale,
        guidance_scale=rival.guidance_scale,
    )


def files(rivals: Mapping[str, Published]) -> dict[str, tuple[RivalFile, float]]:
    """The file of every adapter of the rivals and its scale, by the adapter's name."""
    return {
        _adapter(name, i): (file, rival.scale) for name, rival in rivals.items() for i, file in enumerate(rival.files)
    }


def read(file: RivalFile, scale: float, backbone: StockBackbone) -> adapters.State:
    """The adapter in a file, its scale folded into B.

    Raises:
        ValueError: The file is missing, or is no LoRA of the backbone's transformer, see `lora_files.read`.
    """
    file.require()
    return adapters.fold_scale(lora_files.read(file.path, backbone), scale, 1)


def _adapter(name: str, place: int) -> str:
    """No phase and no job has a name with a dot."""
    return f"rivals.{name}.{place}"
