"""Whose images a benchmark compares: the arms of the evaluation, other bundles, and folders of finished images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline import artifacts, names, rival_params
from pipeline.benchmarking.settings import Settings
from pipeline.evaluation import inputs, published
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
        key: The parameter that names the folder.
    """

    name: str
    folder: Path
    key: str


def find(wanted: Sequence[str], params: Params, settings: Settings) -> list[Made | Given]:
    """The arms of these names, in this order.

    Raises:
        ValueError: A name is unknown, a folder is missing or holds no bundle, a bundle belongs to another teacher, or a
            rival of params.yaml has the name of another arm.
    """
    folders = _folders(params, settings)
    known = [*titles(), *params.published, *settings.bundles, *folders]
    for name in params.rivals:
        published.check_name(name)
        if name in settings.bundles or name in settings.folders:
            raise ValueError(f"rivals must have names that bundles and folders lack, got {name}")
    for name in wanted:
        names.check("arms", name, known, "be among")
    asked = replace(params, rivals={name: entry for name, entry in params.rivals.items() if name in wanted})
    own: Inputs | None = None
    found: list[Made | Given] = []
    for name in dict.fromkeys(wanted):
        if name in folders:
            if not folders[name].folder.is_dir():
                raise ValueError(f"{folders[name].key} must be a folder of images, got {folders[name].folder}")
            found.append(folders[name])
        elif name in settings.bundles:
            alone = replace(params, rivals={})
            given = inputs.read(alone, inputs.of_bundle(alone, Path(settings.bundles[name])))
            arm = next(arm for arm in given.arms if arm.name == PRODUCT)
            found.append(Made(name=name, arm=arm, inputs=given))
        else:
            own = own or inputs.read(asked, _own(params))
            there = {arm.name: arm for arm in own.arms}
            if name not in there:
                raise ValueError(f"arms must be among {', '.join(there)}, which this project has trained, got {name}")
            found.append(Made(name=name, arm=there[name], inputs=own))
    return found


def _folders(params: Params, settings: Settings) -> dict[str, Given]:
    """The folders of finished images, by name: those of both parameter files."""
    rivals = rival_params.images(params.rivals)
    return {
        **{name: Given(name=name, folder=path, key=f"rivals.{name}.images") for name, path in rivals.items()},
        **{name: Given(name=name, folder=path, key=f"folders.{name}") for name, path in settings.folders.items()},
    }


def _own(params: Params) -> inputs.Source:
    """The project's own pair, with its trained controls."""
    if not (artifacts.BUNDLE / "glance.json").is_file():
        raise ValueError(f"{artifacts.BUNDLE} is missing: run `dvc repro` first, or name another one under bundles")
    return inputs.of_bundle(params, artifacts.BUNDLE)
