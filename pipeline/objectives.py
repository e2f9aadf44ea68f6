"""The choices of training.objective: what an adapter is asked to predict, at what learning rate."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pipeline import flow, names


@dataclass(frozen=True)
class Sample:
    """What the objectives see of B student steps; latents (B, T, C) and sigmas (B,), all float32."""

    x: Tensor
    """The teacher's state at the start."""
    x_next: Tensor
    """The teacher's state at the end."""
    x_0: Tensor
    """The teacher's last state."""
    noise: Tensor
    """Fresh noise, from the job's seed."""
    sigma: Tensor
    sigma_next: Tensor


@dataclass(frozen=True)
class Objective:
    """What the model is asked, and how its learning rate goes."""

    problem: Callable[[Sample], tuple[Tensor, Tensor]]
    """A sample's input x and target velocity."""
    rate: Callable[[float], float]
    """Factor of the learning rate by the share of train steps that are done."""
    guided: bool
    """Whether the velocity that meets the target is the student's guided one; else the conditional one alone."""


def trajectory(sample: Sample) -> tuple[Tensor, Tensor]:
    """x = x_i of the teacher, target (x_j - x_i) / (sigma_j - sigma_i): one Euler step lands on the teacher's path.

    In units of velocity, so every student step weighs the same, however short it is.
    """
    return sample.x, flow.secant(sample.x, sample.x_next, sample.sigma, sample.sigma_next)


def noise_to_data(sample: Sample) -> tuple[Tensor, Tensor]:
    """x = (1 - sigma) x_0 + sigma noise at the phase's levels, target noise - x_0: the paper's objective."""
    return flow.interpolate(sample.x_0, sample.noise, sample.sigma), flow.velocity(sample.x_0, sample.noise)


def cosine(done: float) -> float:
    """(1 + cos(pi done)) / 2: from 1 to 0."""
    return (1 + math.cos(math.pi * done)) / 2


def constant(done: float) -> float:
    """1."""
    return 1.0


OBJECTIVES = {
    "trajectory": Objective(trajectory, cosine, guided=True),
    "flow": Objective(noise_to_data, constant, guided=False),
}


def check(name: str) -> None:
    """Raises ValueError unless there is an objective of this name."""
    names.check("training.objective", name, OBJECTIVES)
