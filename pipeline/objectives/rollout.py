"""End-to-end regression: the student takes all of its steps, and the gradient flows through all of them."""

from torch import Tensor

from pipeline.flow.guidance import Velocity
from pipeline.objectives.base import Objective, Sample, cosine, error, whole_part


def rollout(sample: Sample, student: Velocity, teacher: Velocity) -> Tensor:
    """|x^S - x_next|^2, x^S the end of all of the adapter's Euler steps from x.

    The method of Qwen-Image-Distill-LoRA: the loss is at the end alone, so the errors of the steps may cancel.
    """
    x = sample.x
    for sigma, sigma_next in zip(sample.levels[:, :-1].unbind(1), sample.levels[:, 1:].unbind(1), strict=True):
        d_sigma = (sigma_next - sigma).reshape(-1, *[1] * (x.ndim - 1))
        x = x + d_sigma * student(x, sigma)
    return error(x, sample.x_next)


ROLLOUT = Objective(loss=rollout, rate=cosine, guided=True, samples=whole_part, forwards=lambda steps: (steps, 0))
