"""The noise levels of a published few-step model: those of its own scheduler, in the terms of the teacher's."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from pipeline.flow.schedule import Schedule, base_levels


def rival_levels(
    teacher: Schedule,
    steps: int,
    shift: float | None = None,
    terminal: float | Literal["teacher"] | None = "teacher",
    sigmas: Sequence[float] | None = None,
) -> Tensor:
    """The sigmas of a model that was distilled on levels of its own.

    u_i = 1 - i / steps as the stock pipelines have it, then sigma = shift u / (1 + (shift - 1) u), then the stretch of
    the last level: diffusers' FlowMatchEulerDiscreteScheduler with base_shift = max_shift = ln(shift).

    Args:
        teacher: The teacher's schedule at the resolution of the images.
        steps: S.
        shift: The fixed factor on the odds of u; None = the teacher's own.
        terminal: Where the last level is stretched to; None = no stretch; "teacher" = as the teacher's.
        sigmas: The S levels as the model is told them; shift and terminal then play no part.

    Returns:
        Decreasing sigmas with the final 0, float64, shape (S + 1,).

    Raises:
        ValueError: A stretch is asked for in a single step.
    """
    if sigmas is not None:
        return torch.tensor([*sigmas, 0.0], dtype=torch.float64)
    schedule = teacher if shift is None else replace(teacher, mu=math.log(shift))
    if terminal != "teacher":
        schedule = replace(schedule, shift_terminal=terminal)
    return schedule.sigmas(base_levels(steps))
