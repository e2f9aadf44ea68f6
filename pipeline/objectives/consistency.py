"""Consistency distillation: all states of a path have the same end. The student's own estimates are the targets."""

import torch
from torch import Tensor

from pipeline import flow
from pipeline.flow.guidance import Velocity
from pipeline.objectives.base import Objective, Sample, cosine, each_recorded_step

HUBER_C = 1e-3  # diffusers' LCM-LoRA training script


def consistency(sample: Sample, student: Velocity, teacher: Velocity) -> Tensor:
    """rho(D(x_i, sigma_i) - sg D(x_j, sigma_j)), D(x, sigma) = x - sigma v(x, sigma): x_i and x_j have the same x_0.

    Song et al., arXiv 2303.01469; Luo et al., arXiv 2310.04378, on the teacher's recorded states, which are guided. The
    target comes from the same weights without gradient. D(x, 0) = x holds by itself. rho is the mean of
    sqrt(d^2 + c^2) - c.
    """
    with torch.no_grad():
        target = flow.x_0_from_velocity(sample.x_next, student(sample.x_next, sample.sigma_next), sample.sigma_next)
    d = flow.x_0_from_velocity(sample.x, student(sample.x, sample.sigma), sample.sigma) - target
    return ((d.square() + HUBER_C**2).sqrt() - HUBER_C).flatten(1).mean(1)


CONSISTENCY = Objective(
    loss=consistency, rate=cosine, guided=True, samples=each_recorded_step, forwards=lambda steps: (1, 1)
)
