"""The model families, and which of them a diffusers directory holds."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from pipeline import artifacts
from pipeline.backbones.base import Backbone

PARTS = ("text", "transformer", "vae")


def _flux(path: Path, device: torch.device, parts: Sequence[str], dtype: torch.dtype) -> Backbone:
    with _quiet_transformers():
        from pipeline.backbones.flux import FluxBackbone  # diffusers takes seconds to import
    return FluxBackbone(path, device, parts, dtype)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Importing a pipeline warns that image processors, which nothing here uses, would like torchvision."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


FAMILIES: dict[str, Callable[[Path, torch.device, Sequence[str], torch.dtype], Backbone]] = {"FluxPipeline": _flux}
"""Loader by the pipeline class that model_index.json names."""


def load(
    path: str | Path,
    device: str | torch.device = "auto",
    parts: Sequence[str] = PARTS,
    dtype: torch.dtype = torch.float32,
) -> Backbone:
    """The backbone of a diffusers pipeline directory.

    Args:
        path: The directory.
        device: A torch device, or "auto" for a GPU where there is one.
        parts: Which of "text", "transformer" and "vae" to load; the methods that need another one raise.
        dtype: Of weights and latents.

    Raises:
        ValueError: The directory is missing or unreadable, or nothing here knows its pipeline class.
        FileNotFoundError: A configuration file is missing.
    """
    path = Path(path)
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise ValueError(f"parts must be among {', '.join(PARTS)}, got {', '.join(unknown)}")
    if not path.is_dir():
        raise ValueError(f"teacher: {path} is no folder")
    name = artifacts.read_json(path / "model_index.json").get("_class_name")
    if name not in FAMILIES:
        raise ValueError(f"teacher: the pipeline class of {path} must be one of {', '.join(FAMILIES)}, got {name}")
    return FAMILIES[name](path, resolve_device(device), tuple(parts), dtype)


def resolve_device(device: str | torch.device) -> torch.device:
    """The torch device of a name; "auto" is a GPU where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def digest(path: str | Path) -> str:
    """sha256 over names and bytes of the transformer's files: what an adapter was trained on.

    Raises:
        FileNotFoundError: The directory has no transformer.
    """
    return artifacts.folder_digest(Path(path) / "transformer")
