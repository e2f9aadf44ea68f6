"""The model families, and which of them a diffusers directory holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline import artifacts
from pipeline.backbones.teacher import Teacher
from pipeline.names import meant_path
from pipeline.styles import Lora, content

if TYPE_CHECKING:
    from pipeline.backbones.stock import StockBackbone

PARTS = ("text", "transformer", "vae")
FAMILIES = "pipeline.families"  # imported by name, since a family imports this package


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences a warning at a pipeline's import: image processors, unused here, would like torchvision."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def load(
    teacher: Teacher | str | Path,
    device: str | torch.device = "auto",
    parts: Sequence[str] = PARTS,
    *,
    offload: bool = False,
) -> StockBackbone:
    """The backbone of a diffusers pipeline directory.

    Args:
        teacher: The model; a path alone = the model in this folder, in float32, without quantisation or LoRAs.
        device: A torch device, or "auto" for a GPU where there is one.
        parts: Which of "text", "transformer" and "vae" to load; methods that need another part raise.
        offload: Keep the parts in main memory, and only the part that was used last on the device.

    Raises:
        ValueError: As `family` and `resolve_device` do; or the directory lacks a part or is no flow-matching model; the
            quantisation needs another device or a package; or a LoRA is missing or for another transformer.
        FileNotFoundError: A configuration file is missing.
    """
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise ValueError(f"parts must be among {', '.join(PARTS)}, got {', '.join(unknown)}")
    asked = teacher if isinstance(teacher, Teacher) else Teacher.at(teacher)
    return family(asked.path)(asked, resolve_device(device), tuple(parts), offload=offload)


def family(path: str | Path) -> type[StockBackbone]:
    """The family of a diffusers pipeline directory.

    Raises:
        ValueError: The directory is missing or unreadable, or its pipeline class belongs to no family.
        FileNotFoundError: It has no model_index.json.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"teacher: {path} is no folder{meant_path(path)}")
    content = artifacts.read_json(path / "model_index.json")
    name = content.get("_class_name") if isinstance(content, dict) else None
    families = import_module(FAMILIES).CLASSES
    if name not in families:
        raise ValueError(f"teacher: the pipeline class of {path} must be one of {', '.join(families)}, got {name}")
    with quiet_transformers():
        return import_module(f"{FAMILIES}.{families[name]}").BACKBONE


def resolve_device(device: str | torch.device) -> torch.device:
    """The torch device of a name; "auto" is a GPU where there is one.

    Raises:
        ValueError: The name is no device, or a GPU that torch does not see.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved, seen = torch.device(device), torch.cuda.device_count()
    except RuntimeError as error:
        raise ValueError(f"runtime.device or --device must be auto, cpu or cuda, got {device}") from error
    if resolved.type == "cuda" and (resolved.index or 0) >= seen:
        known = ", ".join(["auto", "cpu", *(f"cuda:{i}" for i in range(seen))])
        raise ValueError(f"runtime.device or --device must be one of {known} on this machine, got {device}")
    return resolved


def digest(path: str | Path, loras: Sequence[Lora] = ()) -> str:
    """sha256 over names and bytes of the transformer's files, the base of an adapter.

    With `loras`, sha256 over this digest and over bytes and weight of each LoRA.

    Raises:
        FileNotFoundError: The directory has no transformer.
        ValueError: A LoRA is missing, or its bytes do not match its `sha256`.
    """
    transformer = artifacts.folder_digest(Path(path) / "transformer")
    if not loras:
        return transformer
    return f"sha256:{artifacts.digest_of([transformer, content(loras)])}"
