"""The parts of an objective."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What an objective sees of B student steps; latents (B, T, C) and sigmas (B,), all float32."""

    x: Tensor
    """The recorded state at the start."""
    x_next: Tensor
    """The recorded state at the end."""
    x_0: Tensor
    """The last state of the recording."""
    noise: Tensor
    """Fresh noise, from the job's seed."""
    sigma: Tensor
    sigma_next: Tensor
    target: Tensor
    """The velocity with which the student's solver steps from x to x_next."""
    levels: Tensor
    """Noise levels at which the adapter's student steps start, then at which the last one ends, shape (B, S + 1)."""

    def to(self, device: torch.device) -> "Sample":
        """The same sample on `device`."""
        return Sample(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


Pairs = tuple[tuple[int, int], ...]
"""(start, end) in recorded steps."""


def each_step(steps: Pairs) -> Pairs:
    """A sample is one student step."""
    return steps


def each_recorded_step(steps: Pairs) -> Pairs:
    """A sample is one recorded step on the part of the path that the student steps cover."""
    return tuple(pair for start, end in steps for pair in pairwise(range(start, end + 1)))


def whole_part(steps: Pairs) -> Pairs:
    """A sample is the whole part of the path that the student steps cover, which must follow each other."""
    return ((steps[0][0], steps[-1][1]),)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What an adapter is trained for: a loss, and the course of the learning rate."""

    loss: Callable[..., Tensor]
    """loss(sample, student, teacher) -> (B,): the loss of each row of a `Sample`, to be minimised.

    `student` and `teacher` are velocities v(x, sigma) under the rows' own prompts, float32. A call of `student` is
    differentiable; the teacher is the bare backbone with the guidance of the recording, without gradients. A loss may
    call both as often as it needs; each call costs its forwards.
    """
    rate: Callable[[float], float]
    """(share of train steps that are done) -> factor of the learning rate."""
    guided: bool
    """Whether `student` is the guided velocity and anchors join the batch; else `student` is conditional alone."""
    samples: Callable[[Pairs], Pairs] = each_step
    """(student steps) -> the parts of the path, from x to x_next, that the samples of a batch are drawn from."""
    forwards: Callable[[int], tuple[int, int]] = lambda steps: (1, 0)
    """(student steps) -> calls of a velocity per sample: of the student with gradient; without, or of the teacher."""
    state: Callable[[], dict[str, Tensor]] = dict
    """Makes the tensors that the loss keeps between train steps, such as a running mean, on the CPU. The loss takes
    these tensors as keyword arguments and changes them in place. A checkpoint holds them beside the adapter."""


def error(v: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each row, (B, ...) -> (B,)."""
    return (v - target).square().flatten(1).mean(1)


def cosine(done: float) -> float:
    """(1 + cos(pi done)) / 2: from 1 to 0."""
    return (1 + math.cos(math.pi * done)) / 2


def constant(done: float) -> float:
    """1, whatever is done."""
    return 1.0
