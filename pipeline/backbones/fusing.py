"""Makes LoRAs part of a teacher's weights, before anything is quantised or trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor

from pipeline import adapters, artifacts
from pipeline.adapters import lora_files
from pipeline.backbones import quantization
from pipeline.styles import Lora

if TYPE_CHECKING:
    from pipeline.backbones.stock import StockBackbone


def read(lora: Lora, backbone: StockBackbone, kind: str) -> adapters.State:
    """The adapter of a LoRA that can be fused into the backbone's transformer; arguments as in `fuse`.

    Raises:
        ValueError: The file is missing or is no LoRA for this transformer, see `lora_files.read`; or the transformer is
            quantised, and a weight that the LoRA changes is in no safetensors file.
    """
    lora.require()
    state = lora_files.read(lora.path, backbone)
    if kind != "none":
        files = _files(backbone.path / "transformer")
        for name in (f"{module}.weight" for module in adapters.adapted(state)):
            if name not in files:
                where = f"{backbone.path} in a safetensors file when teacher.quantization is on"
                raise ValueError(f"teacher.loras needs {name} of {where}")
    return state


def fuse(backbone: StockBackbone, loras: Sequence[Lora], kind: str) -> None:
    """Replaces every weight W of the backbone's transformer by W + sum of weight B A; leaves no peft module behind.

    Args:
        backbone: Its transformer is loaded.
        loras: The LoRAs to add; sums are float32.
        kind: How the transformer is quantised. Quantised weights are rounded once, after the addition. A LoRA is
            mostly smaller than a step of the quantisation, and rounding before the addition would lose it.

    Raises:
        ValueError: As `read` and `Lora.digest` do; or a sum is too large for the weights' type.
    """
    states = []
    for lora in loras:
        lora.digest()
        states.append((lora.weight, read(lora, backbone, kind)))
    originals = {} if kind == "none" else _files(backbone.path / "transformer")
    for module in sorted({module for _, state in states for module in adapters.adapted(state)}):
        layer = backbone.transformer.get_submodule(module)
        if kind == "none":
            full = layer.weight.data
        else:
            full = _original(originals, f"{module}.weight").to(backbone.dtype)
        changes = (
            weight * adapters.delta(state, module) for weight, state in states if f"{module}.lora_A.weight" in state
        )
        delta = reduce(torch.add, changes)
        full = (full.float() + delta.to(full.device)).to(full.dtype)
        if not full.isfinite().all():
            files = ", ".join(str(lora.path) for lora in loras)
            raise ValueError(f"{files}: {module}.weight with its change must be finite in {full.dtype}, got infinity")
        if kind == "none":
            layer.weight.data = full
        else:
            quantization.replace_weight(layer, full, kind)


def _files(folder: Path) -> dict[str, Path]:
    """The safetensors file of every tensor of a folder."""
    found: dict[str, Path] = {}
    for file in (folder / name for name in artifacts.files(folder) if name.endswith(".safetensors")):
        with safe_open(file, framework="pt") as opened:
            found |= dict.fromkeys(opened.keys(), file)
    return found


def _original(files: Mapping[str, Path], name: str) -> Tensor:
    """A weight of the transformer as it is on disk."""
    with safe_open(files[name], framework="pt") as opened:
        return opened.get_tensor(name)
