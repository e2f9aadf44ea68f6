"""Estimates, before anything is loaded, a teacher's memory on the device and its trajectories' size on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from pipeline import adapters, artifacts, backbones, out_of_memory
from pipeline.params import Params

if TYPE_CHECKING:
    from pipeline.backbones.stock import StockBackbone

GIB = 2**30
BYTES = {"fp32": 4.0, "bf16": 2.0}
QUANTISED_BYTES = {"int8": 1.01, "fp8": 1.01, "nf4": 0.57}  # with one scale per row or per block of 64
ADAPTER_BYTES = 16  # float32: weight, gradient and two moments of AdamW
LIVE = (
    24  # tensors of (tokens, width) that one block holds at once: norms, q, k, v, attention, the MLP's four-fold width
)
OVERHEAD = 1.05  # allocator's rounding


@dataclass(frozen=True)
class Estimate:
    """Bytes."""

    recording: float
    """Peak on the device while trajectories are recorded: the text encoders, then the transformer."""
    training: float
    """Peak on the device while an adapter is trained: the transformer alone."""
    evaluating: float
    """Peak on the device while arms make images: all parts, or with runtime.offload the largest."""
    cache: float
    """The recorded trajectories and anchors on disk."""

    @property
    def peaks(self) -> dict[str, float]:
        """The peaks on the device by task, with the names that `out_of_memory.advice` takes."""
        return {"recording": self.recording, "training": self.training, "evaluating": self.evaluating}

    @property
    def device(self) -> float:
        """The largest peak."""
        return max(self.peaks.values())


def estimate(params: Params) -> Estimate:
    """The bytes that recording, training and evaluating with these parameters take.

    Raises:
        ValueError: The teacher is missing or of no known family, or training.targets is unknown.
    """
    teacher = params.teacher
    backbone = backbones.load(teacher.path, "cpu", parts=())
    adapters.check_targets(params.training.targets, backbone)
    skeleton = backbone.skeleton()
    tokens, channels = backbone.latent_shape(teacher.height, teacher.width)
    sequence = tokens + teacher.max_sequence_length
    width, blocks = _width(skeleton), sum(len(m) for m in skeleton.children() if isinstance(m, nn.ModuleList))
    state = sequence * width * BYTES[teacher.dtype]
    weights = _weights(skeleton, teacher.dtype, teacher.quantization)
    kept = blocks + LIVE if params.runtime.gradient_checkpointing else blocks * LIVE
    text, vae = (_folder_bytes(backbone, Path(teacher.path), part) for part in ("text", "vae"))
    transformer = weights + params.evaluation.batch * state * LIVE
    if teacher.base.fuses and not params.runtime.offload:
        transformer += 2 * _adapted(backbone, skeleton, params) * BYTES[teacher.dtype]  # full weights, one copy a phase
    trajectories = params.trajectories.prompts * params.trajectories.seeds_per_prompt
    student_steps = params.partition.slow_steps + params.partition.fast_steps
    states = trajectories * (params.trajectories.steps + 1) + params.anchors.prompts * (student_steps + 1)
    batch = params.training.batch + (params.training.anchor_batch if params.anchors.prompts else 0)
    return Estimate(
        recording=OVERHEAD * max(text, weights + params.trajectories.shard_size * state * LIVE),
        training=OVERHEAD * (weights + _adapter(backbone, skeleton, params) + batch * state * kept),
        evaluating=OVERHEAD * (max(text, transformer, vae) if params.runtime.offload else text + transformer + vae),
        cache=states * tokens * channels * BYTES[teacher.dtype],
    )


def capacity(device: str) -> float:
    """Bytes of memory that a device has."""
    place = backbones.resolve_device(device)
    if place.type == "cuda":
        return torch.cuda.get_device_properties(place).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def advice(params: Params, needed: Estimate, have: float) -> str:
    """The cheapest change that shrinks the first task that does not fit into `have` bytes."""
    work = next(work for work, peak in needed.peaks.items() if peak > have)
    gpu = backbones.resolve_device(params.runtime.device).type != "cpu"
    return out_of_memory.advice(params, work, gpu)[0]


def _weights(skeleton: nn.Module, dtype: str, quantization: str) -> float:
    linear = {id(m.weight): m.weight.numel() for m in skeleton.modules() if isinstance(m, nn.Linear)}
    rest = sum(weight.numel() for weight in skeleton.parameters() if id(weight) not in linear)
    each = QUANTISED_BYTES.get(quantization, BYTES[dtype])
    return sum(linear.values()) * each + rest * BYTES[dtype]


def _width(skeleton: nn.Module) -> int:
    """Width of the residual stream, which is the input width of the attention projections."""
    return max(m.in_features for name, m in skeleton.named_modules() if name.endswith("to_q"))


def _layers(backbone: StockBackbone, skeleton: nn.Module, params: Params) -> list[nn.Linear]:
    """The layers that an adapter changes."""
    named = adapters.targeted(skeleton, backbone.lora_targets[params.training.targets])
    return [module for module in named.values() if isinstance(module, nn.Linear)]


def _adapter(backbone: StockBackbone, skeleton: nn.Module, params: Params) -> float:
    sides = sum(layer.in_features + layer.out_features for layer in _layers(backbone, skeleton, params))
    return params.training.rank * sides * ADAPTER_BYTES


def _adapted(backbone: StockBackbone, skeleton: nn.Module, params: Params) -> float:
    return sum(layer.weight.numel() for layer in _layers(backbone, skeleton, params))


def _folder_bytes(backbone: StockBackbone, path: Path, part: str) -> float:
    folders = [path / name for name in backbone.part_modules[part]]
    files = (folder / name for folder in folders if folder.is_dir() for name in artifacts.files(folder))
    return sum(file.stat().st_size for file in files if file.suffix == ".safetensors")
