"""Whose images a benchmark compares: the arms of the evaluation, other bundles, and folders of finished images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import artifacts, names
from pipeline.benchmarking.settings import Settings
from pipeline.evaluation import inputs
from pipeline.evaluation.arms import Arm
from pipeline.evaluation.inputs import Inputs
from pipeline.evaluation.recipes import PRODUCT, titles
from pipeline.params import Params


@dataclass(frozen=True, kw_only=True)
class Made:
    """An arm whose images are made here.

    Attributes:
        name: Name in the tables.
        arm: Levels, adapters and guidance.
        inputs: The models that make the images.
    """

    name: str
    arm: Arm
    inputs: Inputs


@dataclass(frozen=True, kw_only=True)
class Given:
    """An arm whose images were made elsewhere.

    Attributes:
        name: Name in the tables.
        folder: Holds PPPPP_K.png (or .jpg, .webp): image K of prompt number PPPPP, both from 0.
    """

    name: str
    folder: Path


def find(wanted: Sequence[str], params: Params, settings: Settings) -> list[Made | Given]:
    """The arms of these names, in this order.

    Raises:
        ValueError: A name is unknown, a folder is missing or holds no bundle, or a bundle belongs to another teacher.
    """
    known = [*titles(), *settings.bundles, *settings.folders]
    for name in wanted:
        names.check("arms", name, known, "be among")
    own: Inputs | None = None
    found: list[Made | Given] = []
    for name in dict.fromkeys(wanted):
        if name in settings.folders:
            if not settings.folders[name].is_dir():
                raise ValueError(f"folders.{name} must be a folder of images, got {settings.folders[name]}")
            found.append(Given(name=name, folder=settings.folders[name]))
        elif name in settings.bundles:
            given = inputs.read(params, inputs.of_bundle(params, Path(settings.bundles[name])))
            arm = next(arm for arm in given.arms if arm.name == PRODUCT)
            found.append(Made(name=name, arm=arm, inputs=given))
        else:
            own = own or inputs.read(params, _own(params))
            there = {arm.name: arm for arm in own.arms}
            if name not in there:
                raise ValueError(f"arms must be among {', '.join(there)}, which this project has trained, got {name}")
            found.append(Made(name=name, arm=there[name], inputs=own))
    return found


def _own(params: Params) -> inputs.Source:
    """The project's own pair, with its trained controls."""
    if not (artifacts.BUNDLE / "glance.json").is_file():
        raise ValueError(f"{artifacts.BUNDLE} is missing: run `dvc repro` first, or name another one under bundles")
    return inputs.of_bundle(params, artifacts.BUNDLE)
