"""What every scorer loads: a package of the extra `benchmarks`, and the file of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from pipeline import artifacts, names
from pipeline.benchmarking.scorers import Lacking, Weight

if TYPE_CHECKING:
    import torch


def package(name: str) -> ModuleType:
    """A package of the extra `benchmarks`.

    Raises:
        Lacking: The package is missing or does not load, such as a torchvision that was built for another torch.
    """
    try:
        return import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        found = " ".join(str(error).split())
        raise Lacking(f"{name} must load: pip install 'glance-pipeline[benchmarks]', got {found}") from error


def file(weight: Weight, places: Mapping[str, Path]) -> Path:
    """The file of a scorer's weights, checked against the pinned digest.

    Raises:
        ValueError: The file is not configured, is missing, or has another digest.
    """
    what = f"the weights {weight.name} must be {f'{weight.file} of {weight.hub}' if weight.file else weight.hub}"
    path = places.get(weight.name)
    if path is None:
        raise ValueError(f"{what}, got no file")
    if path.is_dir():
        raise ValueError(f"{what}, got the folder {path}")
    if not path.is_file():
        raise ValueError(f"{what}, got {path}, which is no file{names.meant_path(path)}")
    if weight.sha256 is not None:
        digest = artifacts.file_digest(path).removeprefix("sha256:")
        if digest != weight.sha256:
            raise ValueError(f"{what} with the sha256 {weight.sha256}, got {digest} in {path}")
    return path


def fill(model: torch.nn.Module, state: Mapping[str, torch.Tensor], weight: Weight) -> None:
    """Loads weights into a model; they must hold every tensor of the model and no other.

    Raises:
        ValueError: The names or shapes differ.
    """
    own = model.state_dict()
    reshaped = {name for name in own.keys() & state.keys() if own[name].shape != state[name].shape}
    wrong = (own.keys() ^ state.keys()) | reshaped
    if wrong:
        raise ValueError(
            f"the weights {weight.name} must hold the {len(own)} tensors of their model, got {len(state)}:"
            f" {len(wrong)} are missing, unknown or of another shape, the first is {min(wrong)}"
        )
    model.load_state_dict(state)
