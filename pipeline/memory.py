"""Estimates, before anything is loaded, what a teacher takes on the device and its trajectories on disk."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pipeline import backbones
from pipeline.backbones.stock import StockBackbone
from pipeline.params import Params

GIB = 2**30
BYTES = {"fp32": 4.0, "bf16": 2.0}
QUANTISED_BYTES = {"int8": 1.01, "fp8": 1.01, "nf4": 0.57}  # with the scales of rows or of blocks of 64
ADAPTER_BYTES = 16  # float32: weight, gradient and two moments of AdamW
LIVE = (
    24  # tensors of (tokens, width) that one block holds at once: norms, q, k, v, attention, the MLP's four-fold width
)
OVERHEAD = 1.05  # allocator's rounding


@dataclass(frozen=True)
class Estimate:
    """Bytes."""

    recording: float
    """Peak on the device while trajectories are recorded: transformer and text encoders."""
    training: float
    """Peak on the device while an adapter is trained: the transformer alone."""
    cache: float
    """The recorded trajectories on disk."""

    @property
    def device(self) -> float:
        """The larger peak."""
        return max(self.recording, self.training)


def estimate(params: Params) -> Estimate:
    """What recording and training with these parameters take.

    Raises:
        ValueError: The teacher is missing or of no known family.
    """
    teacher = params.teacher
    backbone = backbones.load(teacher.path, "cpu", parts=())
    skeleton = backbone.skeleton()
    tokens, channels = backbone.latent_shape(teacher.height, teacher.width)
    sequence = tokens + teacher.max_sequence_length
    width, blocks = _width(skeleton), sum(len(m) for m in skeleton.children() if isinstance(m, nn.ModuleList))
    state = sequence * width * BYTES[teacher.dtype]
    weights = _weights(skeleton, teacher.dtype, teacher.quantization)
    kept = blocks + LIVE if params.runtime.gradient_checkpointing else blocks * LIVE
    text = _folder_bytes(backbone, Path(teacher.path), "text")
    trajectories = params.trajectories.prompts * params.trajectories.seeds_per_prompt
    row = (teacher.steps + 1) * tokens * channels * BYTES[teacher.dtype]
    return Estimate(
        recording=OVERHEAD * (weights + text + params.trajectories.shard_size * state * LIVE),
        training=OVERHEAD * (weights + _adapter(backbone, skeleton, params) + params.training.batch * state * kept),
        cache=trajectories * row,
    )


def capacity(device: str) -> float:
    """Bytes of memory that a device has."""
    place = backbones.resolve_device(device)
    if place.type == "cuda":
        return torch.cuda.get_device_properties(place).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def mend(params: Params) -> str:
    """What to change when an estimate does not fit, the cheapest first."""
    if not params.runtime.gradient_checkpointing:
        return "set runtime.gradient_checkpointing to true"
    if params.trajectories.shard_size > 1 or params.training.batch > 1:
        return "lower trajectories.shard_size and training.batch"
    smaller = {"none": "int8", "int8": "nf4", "fp8": "nf4"}.get(params.teacher.quantization)
    return (
        f"set teacher.quantization to {smaller}" if smaller else "lower teacher.height and width, or use a larger GPU"
    )


def _weights(skeleton: nn.Module, dtype: str, quantization: str) -> float:
    linear = {id(m.weight): m.weight.numel() for m in skeleton.modules() if isinstance(m, nn.Linear)}
    rest = sum(weight.numel() for weight in skeleton.parameters() if id(weight) not in linear)
    each = QUANTISED_BYTES.get(quantization, BYTES[dtype])
    return sum(linear.values()) * each + rest * BYTES[dtype]


def _width(skeleton: nn.Module) -> int:
    """Of the residual stream: the attention projections' input."""
    return max(m.in_features for name, m in skeleton.named_modules() if name.endswith("to_q"))


def _adapter(backbone: StockBackbone, skeleton: nn.Module, params: Params) -> float:
    targets = tuple(f".{target}" for target in backbone.lora_targets[params.training.targets])
    sides = sum(
        module.in_features + module.out_features
        for name, module in skeleton.named_modules()
        if isinstance(module, nn.Linear) and f".{name}".endswith(targets)
    )
    return params.training.rank * sides * ADAPTER_BYTES


def _folder_bytes(backbone: StockBackbone, path: Path, part: str) -> float:
    folders = [path / name for name in backbone.part_modules[part]]
    return sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors"))
