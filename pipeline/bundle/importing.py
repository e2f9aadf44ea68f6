"""Makes a bundle from LoRA files that were trained elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig

from pipeline import adapters, backbones, partition
from pipeline.adapters import lora_files
from pipeline.artifacts import atomic_dir
from pipeline.bundle import experts, write
from pipeline.bundle.carried import Carried
from pipeline.bundle.manifest import Bundle
from pipeline.flow import stepping
from pipeline.flow.schedule import Schedule
from pipeline.params import Params
from pipeline.partition import Partition

if TYPE_CHECKING:
    from pipeline.backbones.stock import StockBackbone

SAME_LEVEL = 1e-6  # two machines compute a noise level with other last digits


def bundle(
    files: Mapping[str, Path],
    params: Params,
    out: Path,
    rule: str,
    steps: Mapping[str, int],
    strength: float = 1.0,
    path: str = "consistent",
    levels: Sequence[float] | None = None,
) -> Bundle:
    """Writes a bundle for the teacher of `params`, whole or not at all.

    Args:
        files: The LoRA of each phase in order, as `lora_files.read` takes it.
        params: The parameters, whose teacher is the base.
        out: The folder to make.
        rule: How the steps are chosen: for two phases one of `partition.RULES`, else one of `experts.RULES`. The
            released Glance weights use "official".
        steps: The number of steps of each phase.
        strength: Factor on the adapters. A file without an alpha counts as alpha = rank.
        path: How the latents move, see `stepping.PATHS`; the official Glance code moves them by "official".
        levels: The base level of each step, in place of a rule; None = the rule's.

    Raises:
        ValueError: A file is no LoRA of the base (see `lora_files.read`), the rule, the steps or the levels do not fit,
            the path is unknown or for another number of phases, or the strength is not finite.
    """
    stepping.check("path", path)
    backbone = backbones.load(params.teacher.path, "cpu", parts=())
    states = _states(files, backbone, strength)
    split = _split(params, backbone.schedule(params.teacher.height, params.teacher.width), rule, steps, levels)
    return _written(states, split, params, out, path=path)


def rebuilt(carried: Carried, params: Params, out: Path, strength: float = 1.0) -> Bundle:
    """Writes the bundle that a contract describes from the files that carry the contract, whole or not at all.

    Args:
        carried: The contract, which says levels, names, guidance and size, and the file of each phase.
        params: The parameters, whose teacher is the base.
        out: The folder to make.
        strength: Factor on the adapters. If it is not 1, the contract's retention does not count.

    Raises:
        ValueError: A file is no LoRA of the base, the contract is of another base or other noise levels than the
            base's, or the strength is not finite.
    """
    said, own = carried.contract, params.teacher
    digest = backbones.digest(own.path, own.loras)
    if digest != said.base_digest:
        raise ValueError(
            f"the files carry a contract for another model than {own.path}: {said.base_digest}, not {digest}; "
            "with --levels or --rule they are imported for this model all the same"
        )
    teacher = replace(
        own,
        steps=said.teacher_steps,
        height=said.height,
        width=said.width,
        max_sequence_length=said.max_sequence_length,
        dtype=said.dtype,
        true_cfg_scale=said.guidance.teacher_true_cfg_scale,
        guidance_scale=said.guidance.guidance_scale,
        negative_prompt=said.guidance.negative_prompt,
    )
    student = replace(params.student, true_cfg_scale=said.guidance.student_true_cfg_scale, solver=said.solver)
    backbone = backbones.load(own.path, "cpu", parts=())
    schedule = backbone.schedule(said.height, said.width)
    split = experts.at_levels(said.u, [one.name for one in said.phases for _ in one.steps], teacher.steps, schedule)
    if not all(math.isclose(*levels, abs_tol=SAME_LEVEL) for levels in zip(split.sigmas, said.sigmas, strict=True)):
        raise ValueError(
            f"the files carry a contract with the noise levels {_listed(said.sigmas)}, and the scheduler of {own.path} "
            f"gives {_listed(split.sigmas)}; with --levels or --rule they are imported for this model all the same"
        )
    states = _states(carried.files, backbone, strength)
    kept = said.retention if strength == 1 else None
    return _written(
        states,
        split,
        replace(params, teacher=teacher, student=student),
        out,
        path=said.path,
        license=said.license,
        retention=kept,
    )


def _states(files: Mapping[str, Path], backbone: StockBackbone, strength: float) -> dict[str, adapters.State]:
    """The adapter of each phase, times the strength."""
    if not math.isfinite(strength):
        raise ValueError(f"--strength must be a finite number, got {strength}")
    return {phase: _scaled(lora_files.read(file, backbone), strength) for phase, file in files.items()}


def _written(
    states: Mapping[str, adapters.State], split: Partition, params: Params, out: Path, **contract: Any
) -> Bundle:
    """Writes the bundle at the largest rank of its adapters; `contract` are keywords of `write.bundle`."""
    if out.exists():
        raise ValueError(f"--out must not be there yet, got {out}")
    rank = max(tensor.shape[0] for state in states.values() for key, tensor in state.items() if ".lora_A." in key)
    with TemporaryDirectory() as scratch, atomic_dir(out) as folder:
        folders = {phase: Path(scratch) / str(i) for i, phase in enumerate(states)}
        for phase, state in states.items():
            state = _padded(state, rank)
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules=adapters.adapted(state))
            adapters.save(folders[phase], state, config)
        write.bundle(folder, folders, split, params.teacher, params.student, imported=True, **contract)
    return Bundle.load(out)


def _split(
    params: Params, schedule: Schedule, rule: str, steps: Mapping[str, int], levels: Sequence[float] | None
) -> Partition:
    """The steps of the phases, on the teacher's own steps if a rule chooses them."""
    acting = [phase for phase, count in steps.items() for _ in range(count)]
    if levels is not None:
        return experts.at_levels(levels, acting, params.teacher.steps, schedule)
    if len(steps) != 2:
        return experts.by_rule(rule, acting, params.teacher.steps, schedule)
    slow_steps, fast_steps = steps.values()
    wanted = replace(params.partition, rule=rule, slow_steps=slow_steps, fast_steps=fast_steps)
    every = replace(params.trajectories, steps=params.teacher.steps)
    return experts.regroup(partition.compute(replace(params, partition=wanted, trajectories=every), schedule), acting)


def _listed(levels: Sequence[float]) -> str:
    return ", ".join(f"{level:.4f}" for level in levels)


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
