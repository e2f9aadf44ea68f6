"""The student's path for any number of adapters: which one acts in each step, and at which levels the steps start."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby, pairwise

import torch

from pipeline import flow, names
from pipeline.flow.schedule import NUM_TRAIN_TIMESTEPS, Schedule, base_levels
from pipeline.partition import Partition, Phase, spread


def regroup(partition: Partition, adapters: Sequence[str]) -> Partition:
    """The same steps in other phases: consecutive steps of one adapter are a phase with the adapter's name.

    Args:
        partition: A path of K steps.
        adapters: The adapter of each step, length K.

    Raises:
        ValueError: There are not K adapters, or the steps of one adapter are not consecutive.
    """
    if len(adapters) != len(partition.u):
        raise ValueError(f"a path of {len(partition.u)} steps needs as many adapters, got {len(adapters)}")
    phases = _phases(adapters, partition.steps, partition.u, partition.sigmas)
    return Partition(partition.rule, partition.teacher_steps, partition.schedule, phases)


def at_levels(levels: Sequence[float], adapters: Sequence[str], teacher_steps: int, schedule: Schedule) -> Partition:
    """A path at base levels that need not be the teacher's; `steps` then holds the nearest teacher steps.

    Args:
        levels: The base level u at which each step starts, length K.
        adapters: The adapter of each step, length K.
        teacher_steps: The teacher's number of steps.
        schedule: Base levels to sigmas. A terminal stretch moves the last of `levels`, as in a stock pipeline.

    Raises:
        ValueError: There are not K adapters, the levels do not decrease from 1 to above 0, or the steps of one adapter
            are not consecutive.
    """
    if len(levels) != len(adapters):
        raise ValueError(f"--levels must hold a level for each of the {len(adapters)} steps, got {len(levels)}")
    falling = all(later < earlier for earlier, later in pairwise(levels))
    if not levels or levels[0] != 1 or not falling or not levels[-1] > 0:
        raise ValueError(f"--levels must decrease from 1 to a last level above 0, got {_listed(levels)}")
    steps = [min(round((1 - u) * teacher_steps), teacher_steps - 1) for u in levels]
    phases = _phases(adapters, (*steps, teacher_steps), levels, schedule.sigmas(levels).tolist())
    return Partition("levels", teacher_steps, schedule, phases)


def uniform(num_steps: int, teacher_steps: int) -> list[float]:
    """Base levels of the teacher's steps, spread evenly, as the rule `uniform` of a pair chooses them.

    Raises:
        ValueError: The teacher has fewer steps.
    """
    if num_steps > teacher_steps:
        raise ValueError(f"--steps must add up to at most the teacher's {teacher_steps} steps, got {num_steps}")
    return base_levels(teacher_steps)[spread(0, teacher_steps, num_steps)].tolist()


RULES: dict[str, Callable[[int, int], list[float]]] = {"uniform": uniform}
"""(K, the teacher's number of steps) -> K base levels: the rules for any number of adapters."""


def by_rule(rule: str, adapters: Sequence[str], teacher_steps: int, schedule: Schedule) -> Partition:
    """A path at the levels of one of RULES; arguments as for `at_levels`.

    Raises:
        ValueError: The rule is for a pair alone, or unknown; or as the rule and `at_levels` do.
    """
    names.check("--rule", rule, RULES, where=f" for {len(set(adapters))} files without --levels")
    return replace(at_levels(RULES[rule](len(adapters), teacher_steps), adapters, teacher_steps, schedule), rule=rule)


def _phases(
    adapters: Sequence[str], steps: Sequence[int], u: Sequence[float], sigmas: Sequence[float]
) -> tuple[Phase, ...]:
    """The phases of K steps; `steps` and `sigmas` have K + 1 entries, the end of the path included."""
    phases, start = [], 0
    for name, group in groupby(adapters):
        end = start + len(list(group))
        levels = torch.tensor(sigmas[start:end], dtype=torch.float64)
        phases.append(
            Phase(
                name=name,
                steps=tuple(steps[start:end]),
                end=steps[end],
                u=tuple(u[start:end]),
                sigmas=tuple(sigmas[start : end + 1]),
                timesteps=tuple((NUM_TRAIN_TIMESTEPS * levels).tolist()),
                snr=tuple(flow.snr(levels).tolist()),
            )
        )
        start = end
    if len({phase.name for phase in phases}) < len(phases):
        raise ValueError(f"the steps of an adapter must be consecutive, got {_listed(adapters)}")
    return tuple(phases)


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
