"""Makes a bundle from two LoRA files that were trained elsewhere."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import LoraConfig

from pipeline import adapters, backbones, partition
from pipeline.adapters import lora_files
from pipeline.artifacts import atomic_dir
from pipeline.bundle import write
from pipeline.bundle.manifest import Bundle
from pipeline.flow import stepping
from pipeline.params import Params


def bundle(
    files: Mapping[str, Path],
    params: Params,
    out: Path,
    rule: str,
    steps: Mapping[str, int],
    strength: float = 1.0,
    path: str = "consistent",
) -> Bundle:
    """Writes a bundle for the teacher of `params`, whole or not at all.

    Args:
        files: The LoRA of each phase, as `lora_files.read` takes it.
        params: The parameters, whose teacher is the base.
        out: The folder to make.
        rule: Rule of the partition, see `partition.RULES`; the released Glance weights use "official".
        steps: The steps of each phase.
        strength: Factor on the adapters. A file without an alpha counts as alpha = rank.
        path: How the latents move, see `stepping.PATHS`; the official Glance code moves them by "official".

    Raises:
        ValueError: A file is no LoRA of the base (see `lora_files.read`), the rule or the steps do not fit, the path is
            unknown, or the strength is not finite.
    """
    stepping.check("path", path)
    if not math.isfinite(strength):
        raise ValueError(f"--strength must be a finite number, got {strength}")
    backbone = backbones.load(params.teacher.path, "cpu", parts=())
    states = {phase: _scaled(lora_files.read(file, backbone), strength) for phase, file in files.items()}
    rank = max(tensor.shape[0] for state in states.values() for key, tensor in state.items() if ".lora_A." in key)
    wanted = replace(params.partition, rule=rule, slow_steps=steps["slow"], fast_steps=steps["fast"])
    schedule = backbone.schedule(params.teacher.height, params.teacher.width)
    every = replace(params.trajectories, steps=params.teacher.steps)  # imported pairs step on the teacher's own steps
    split = partition.compute(replace(params, partition=wanted, trajectories=every), schedule)
    if out.exists():
        raise ValueError(f"--out must not be there yet, got {out}")
    with TemporaryDirectory() as scratch, atomic_dir(out) as folder:
        for phase, state in states.items():
            state = _padded(state, rank)
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules=adapters.adapted(state))
            adapters.save(Path(scratch) / phase, state, config)
        folders = {phase: Path(scratch) / phase for phase in states}
        write.bundle(folder, folders, split, params.teacher, params.student, path=path, imported=True)
    return Bundle.load(out)


def _scaled(state: adapters.State, strength: float) -> adapters.State:
    return {key: tensor * strength if ".lora_B." in key else tensor for key, tensor in state.items()}


def _padded(state: adapters.State, rank: int) -> adapters.State:
    """The same delta at a larger rank, padded with zeros."""
    result = {}
    for key, tensor in state.items():
        missing = rank - tensor.shape[0 if ".lora_A." in key else 1]
        pad = (0, 0, 0, missing) if ".lora_A." in key else (0, missing)
        result[key] = torch.nn.functional.pad(tensor, pad).contiguous()
    return result
