"""The student's sampling path: which level the model is told in each step, and how far the latents move in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline import names
from pipeline.flow import strength as strengths
from pipeline.flow.schedule import Schedule, base_levels

OFFICIAL_PIXELS = 1024  # height and width that the official lists of timesteps were made for


@dataclass(frozen=True)
class Steps:
    """The student's steps, and the resolution."""

    u: Sequence[float]
    """Base levels of the K starts."""
    phases: Sequence[int]
    """How many of the K steps belong to each phase."""
    teacher_steps: int
    height: int
    width: int


ScheduleAt = Callable[[int, int], Schedule]
"""(height, width) in pixels -> the model's schedule at that resolution."""
SamplingPath = Callable[[Steps, ScheduleAt], tuple[Tensor, Tensor]]
"""Noise levels that the model is told, then 0, shape (K + 1,); and d_sigma of each step, shape (K,). Both float64."""


def consistent(steps: Steps, schedule: ScheduleAt) -> tuple[Tensor, Tensor]:
    """Every step goes from the level that the model is told to the next one: sum of d_sigma = -1."""
    sigmas = schedule(steps.height, steps.width).sigmas(steps.u)
    return sigmas, sigmas.diff()


def official(steps: Steps, schedule: ScheduleAt) -> tuple[Tensor, Tensor]:
    """The path of the official Glance code, pipeline/qwen.py of github.com/CSU-JPG/Glance.

    The slow phase moves along the first steps of the teacher's grid. The fast phase moves along a new grid from
    sigma = 1 to 0, with its own number of steps. The model is told the timesteps of a 1024 x 1024 image, whatever the
    resolution. In total the latents move too far: at 1024 x 1024 with 5 + 5 of 50 steps by 5.4 % (Qwen-Image). The
    official code has a sampler for Qwen-Image only; the same rule moves FLUX.1 3.4 % too far.

    The official code rounds the timesteps to bfloat16 (979.1915 becomes 980); this function does not.

    Raises:
        ValueError: There are not two phases.
    """
    if len(steps.phases) != 2:
        raise ValueError(f"the path official needs two phases, slow and fast, got {len(steps.phases)}")
    slow_steps, fast_steps = steps.phases
    told = schedule(OFFICIAL_PIXELS, OFFICIAL_PIXELS).sigmas(steps.u)
    here = schedule(steps.height, steps.width)
    slow = here.sigmas(base_levels(steps.teacher_steps))[: slow_steps + 1]
    fast = here.sigmas(base_levels(fast_steps))
    return told, torch.cat([slow.diff(), fast.diff()])


PATHS: dict[str, SamplingPath] = {"consistent": consistent, "official": official}


def check(key: str, path: object) -> None:
    """Raises ValueError, which names `key`, unless `path` is one of PATHS."""
    names.check(key, path, PATHS)


def first_step(path: str, num_steps: int, strength: float) -> int:
    """The step that a run from an image starts with on one of PATHS, see `strength.first_step`.

    Raises:
        ValueError: As `strength.first_step` does; or latents on the path do not have the levels that the model is told,
            so there is no level to which noise could be added to an image.
    """
    if path != "consistent":
        raise ValueError(f"an image as the start needs a bundle with the path consistent, got {path}")
    return strengths.first_step(num_steps, strength)
