"""Reads LoRA files of any trainer for a family's transformer, and fuses them into it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from pipeline import adapters
from pipeline.backbones import quantization
from pipeline.loras import Lora

if TYPE_CHECKING:
    from pipeline.backbones.stock import StockBackbone

METADATA = "lora_adapter_metadata"  # where diffusers' save_lora_weights keeps peft's configuration


def read(file: str | Path, backbone: StockBackbone) -> adapters.State:
    """The adapter in a LoRA file, its scale folded into B: keys "<module>.lora_A/B.weight" of the family's transformer.

    Raises:
        ValueError: The file is missing or no safetensors file, or holds no LoRA of a transformer, or more than one.
    """
    try:
        tensors = load_file(file)
        with safe_open(file, framework="pt") as opened:
            metadata = json.loads((opened.metadata() or {}).get(METADATA, "{}"))
    except FileNotFoundError as error:
        raise ValueError(f"{file} is missing") from error
    except SafetensorError as error:
        raise ValueError(f"{file} is no safetensors file ({error})") from error
    prefix = adapters.DIFFUSERS_PREFIX
    if any(key.startswith(prefix) for key in tensors):
        _check_alone(tensors, prefix, file)  # diffusers drops other layouts' keys beside its own without a word
    try:
        loaded = backbone.pipeline_class.lora_state_dict(tensors, **backbone.lora_options)
    except (ValueError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{file} holds no LoRA that {backbone.family} knows: {reason}") from error
    converted, alphas = loaded if isinstance(loaded, tuple) else (loaded, {})
    _check_alone(converted, prefix, file)
    state = adapters.strip_prefix(converted, prefix, file)
    return {key: tensor.float() * _scale(key, state, alphas or {}, metadata) for key, tensor in state.items()}


def read_for(file: str | Path, backbone: StockBackbone, base: str | Path) -> adapters.State:
    """As `read`, and its shapes are those of the backbone's transformer.

    Args:
        file: The LoRA file.
        backbone: Its weights need not be loaded.
        base: What messages call the backbone.

    Raises:
        ValueError: As `read`; or the file changes a module that the transformer does not have in that shape.
    """
    state = read(file, backbone)
    adapters.check(state, adapters.linear_shapes(backbone.skeleton()), str(file), f"the transformer of {base}")
    return state


def read_fusable(lora: Lora, backbone: StockBackbone, path: Path, kind: str) -> adapters.State:
    """The adapter of a LoRA that can be fused into the transformer of `path`; arguments as in `fuse`.

    Raises:
        ValueError: The file is missing or is no LoRA for this transformer; or the transformer is quantised, and a
            weight that the LoRA changes is in no safetensors file.
    """
    lora.require()
    state = read_for(lora.path, backbone, path)
    if kind != "none":
        files = _files(path / "transformer")
        for name in (f"{module}.weight" for module in adapters.adapted(state)):
            if name not in files:
                raise ValueError(
                    f"teacher.loras needs {name} of {path} in a safetensors file when teacher.quantization is on"
                )
    return state


def fuse(backbone: StockBackbone, loras: Sequence[Lora], path: Path, kind: str) -> None:
    """Makes every weight W of the backbone's transformer W + sum of weight B A, and leaves no module of peft's behind.

    Args:
        backbone: Its transformer is loaded from `path`.
        loras: What is added; sums are float32.
        path: The diffusers directory.
        kind: How the transformer is quantised. Quantised weights are rounded once, after the addition: a LoRA is
            mostly smaller than a step of the quantisation, so that adding to rounded weights would lose it.

    Raises:
        ValueError: As `read_fusable` and `Lora.digest` do.
    """
    states = []
    for lora in loras:
        lora.digest()
        states.append((lora.weight, read_fusable(lora, backbone, path, kind)))
    originals = {} if kind == "none" else _files(path / "transformer")
    for module in sorted({module for _, state in states for module in adapters.adapted(state)}):
        layer = backbone.transformer.get_submodule(module)
        if kind == "none":
            full = layer.weight.data
        else:
            full = _original(originals, f"{module}.weight").to(backbone.dtype)
        delta = sum(
            weight * adapters.delta(state, module) for weight, state in states if f"{module}.lora_A.weight" in state
        )
        full = (full.float() + delta.to(full.device)).to(full.dtype)
        if kind == "none":
            layer.weight.data = full
        else:
            quantization.replace_weight(layer, full, kind)


def _check_alone(keys: Iterable[str], prefix: str, file: str | Path) -> None:
    keys = sorted(keys)
    foreign = [key for key in keys if not key.startswith(prefix)]
    if foreign or not keys:
        raise ValueError(
            f"{file} must hold a LoRA of the transformer alone, got {foreign[0] if foreign else 'nothing'}"
        )


def _scale(key: str, state: adapters.State, alphas: Mapping[str, Tensor], metadata: Mapping) -> float:
    """alpha / rank for a B, 1 for an A; by the file's own alpha, or peft's configuration, or 1."""
    if ".lora_A." in key:
        return 1.0
    module = key.removesuffix(".lora_B.weight")
    rank = state[f"{module}.lora_A.weight"].shape[0]
    for name in (f"{adapters.DIFFUSERS_PREFIX}{module}.alpha", f"{module}.alpha"):
        if name in alphas:
            return float(alphas[name]) / rank
    return metadata.get(f"{adapters.DIFFUSERS_PREFIX}lora_alpha", rank) / rank


def _files(folder: Path) -> dict[str, Path]:
    """The safetensors file of every tensor of a folder."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found |= dict.fromkeys(opened.keys(), file)
    return found


def _original(files: Mapping[str, Path], name: str) -> Tensor:
    """A weight of the transformer as it is on disk."""
    with safe_open(files[name], framework="pt") as opened:
        return opened.get_tensor(name)
