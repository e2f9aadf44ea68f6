"""Makes a bundle of two LoRA files that were trained elsewhere."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from pipeline import adapters, backbones, export, partition, paths
from pipeline.artifacts import atomic_dir
from pipeline.backbones.stock import StockBackbone
from pipeline.params import Params

METADATA = "lora_adapter_metadata"  # where diffusers' save_lora_weights keeps peft's configuration


def bundle(
    files: Mapping[str, Path],
    params: Params,
    out: Path,
    rule: str,
    steps: Mapping[str, int],
    strength: float = 1.0,
    path: str = "consistent",
) -> export.Bundle:
    """Writes a bundle for the teacher of `params`, whole or not at all.

    Args:
        files: The LoRA file of each phase, in the keys of diffusers, kohya or ComfyUI.
        params: Its teacher is the base.
        out: The folder to make.
        rule: Of the partition, see `partition.RULES`; the released Glance weights are "official".
        steps: The steps of each phase.
        strength: What the adapters are multiplied with. A file that does not say its alpha counts as alpha = rank.
        path: How the latents move, see `paths.PATHS`; the official Glance code has one of its own.

    Raises:
        ValueError: A file is no LoRA, or its keys or shapes are not the base's; the rule or the steps do not fit;
            there is no such path.
    """
    paths.check("path", path)
    backbone = backbones.load(params.teacher.path, "cpu", parts=())
    shapes = adapters.linear_shapes(backbone.skeleton())
    states = {phase: _scaled(read(file, backbone), strength) for phase, file in files.items()}
    for phase, state in states.items():
        adapters.check(state, shapes, str(files[phase]), f"the transformer of {params.teacher.path}")
    rank = max(tensor.shape[0] for state in states.values() for key, tensor in state.items() if ".lora_A." in key)
    wanted = replace(params.partition, rule=rule, slow_steps=steps["slow"], fast_steps=steps["fast"])
    schedule = backbone.schedule(params.teacher.height, params.teacher.width)
    split = partition.compute(replace(params, partition=wanted), schedule)
    if out.exists():
        raise ValueError(f"--out must not be there yet, got {out}")
    with TemporaryDirectory() as scratch, atomic_dir(out) as folder:
        for phase, state in states.items():
            state = _padded(state, rank)
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules=adapters.adapted(state))
            adapters.save(Path(scratch) / phase, state, config)
        folders = {phase: Path(scratch) / phase for phase in states}
        export.write(folder, folders, split, params.teacher, params.student, path, imported=True)
    return export.Bundle.load(out)


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


def _scaled(state: adapters.State, strength: float) -> adapters.State:
    return {key: tensor * strength if ".lora_B." in key else tensor for key, tensor in state.items()}


def _padded(state: adapters.State, rank: int) -> adapters.State:
    """The same delta at a larger rank, by zeros."""
    result = {}
    for key, tensor in state.items():
        missing = rank - tensor.shape[0 if ".lora_A." in key else 1]
        pad = (0, 0, 0, missing) if ".lora_A." in key else (0, missing)
        result[key] = torch.nn.functional.pad(tensor, pad).contiguous()
    return result
