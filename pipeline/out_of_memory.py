"""What to change when memory runs out, the cheapest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.params import Params


SIGNS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Words of torch's RuntimeErrors when a GPU or a CPU has no memory left."""

SMALLER = {"none": "int8", "int8": "nf4", "fp8": "nf4"}
"""The next smaller kind of quantisation; nf4 needs a GPU."""

STAGES = {
    "cache_trajectories": "recording",
    "cache_anchors": "recording",
    "train_slow": "training",
    "train_fast": "training",
    "train_controls": "training",
    "generate_images": "evaluating",
    "time_arms": "evaluating",
    "evaluate": "scoring",
}
"""The task of each stage that needs much memory."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or in main memory."""
    said = isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
    return said or isinstance(error, MemoryError)


def on_gpu(error: BaseException) -> bool:
    """Whether the memory that ran out was a GPU's."""
    return not isinstance(error, MemoryError) and "DefaultCPUAllocator" not in str(error)


def advice(params: Params, work: str | None, gpu: bool) -> list[str]:
    """The changes that make a task need less memory, the cheapest first; empty for a task that needs little.

    Args:
        params: All parameters; a change that is made already is left out.
        work: "recording", "training", "evaluating", "scoring" or another.
        gpu: Whether the model runs on a GPU; on a CPU there is nowhere to offload to.
    """
    runtime, found = params.runtime, []
    if work == "recording":
        found += ["lower trajectories.shard_size"] * (params.trajectories.shard_size > 1)
    elif work == "training":
        found += ["set runtime.gradient_checkpointing to true"] * (not runtime.gradient_checkpointing)
        found += ["lower training.batch"] * (params.training.batch > 1)
        found += ["lower training.anchor_batch"] * (params.anchors.prompts > 0 and params.training.anchor_batch > 1)
    elif work == "evaluating":
        found += ["set runtime.offload to true"] * (gpu and not runtime.offload)
        found += ["lower evaluation.batch"] * (params.evaluation.batch > 1)
    elif work == "scoring":  # scoring runs without the model
        return ["lower evaluation.bootstrap", *["lower evaluation.batch"] * (params.evaluation.batch > 1)]
    else:
        return []
    found += [f"set teacher.quantization to {kind}" for kind in _smaller(params.teacher.quantization, gpu)]
    return [*found, "lower teacher.height and width"]


def generating(options: Mapping[str, Any], gpu: bool) -> list[str]:
    """The same changes as options of `glance generate`; empty for a command with other options."""
    if "offload" not in options:
        return []
    found = ["add --offload"] * (gpu and not options["offload"]) + ["lower --batch"] * (options["batch"] > 1)
    return found + [f"add --quantization {kind}" for kind in _smaller(options["quantization"], gpu)]


def _smaller(quantization: str, gpu: bool) -> list[str]:
    kind = SMALLER.get(quantization)
    return [kind] if kind and (gpu or kind != "nf4") else []


def sentence(error: BaseException, changes: Sequence[str]) -> str:
    """One line for a person: what ran out, and what to change."""
    place = "the GPU" if on_gpu(error) else "main memory"
    first, *rest = (*changes, f"use a {'larger GPU' if on_gpu(error) else 'machine with more memory'}")
    return f"out of memory, {place} is too small: {first}" + (
        f"; if that is not enough, {', then '.join(rest)}" if rest else ""
    )
