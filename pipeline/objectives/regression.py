"""Regression of the velocity on a target from the recording: one call of the student, none of the teacher."""

from torch import Tensor

from pipeline import flow
from pipeline.flow.guidance import Velocity
from pipeline.objectives.base import Objective, Sample, constant, cosine, error


def trajectory(sample: Sample, student: Velocity, teacher: Velocity) -> Tensor:
    """|v(x_i, sigma_i) - target|^2: one step of the student's solver lands on the teacher's path.

    For Euler's steps the target is (x_j - x_i) / (sigma_j - sigma_i). The error is in units of velocity, so every
    student step weighs the same, however short the step is.
    """
    return error(student(sample.x, sample.sigma), sample.target)


def noise_to_data(sample: Sample, student: Velocity, teacher: Velocity) -> Tensor:
    """|v(x, sigma) - (noise - x_0)|^2 at x = (1 - sigma) x_0 + sigma noise: the paper's objective."""
    x = flow.interpolate(sample.x_0, sample.noise, sample.sigma)
    return error(student(x, sample.sigma), flow.velocity(sample.x_0, sample.noise))


TRAJECTORY = Objective(loss=trajectory, rate=cosine, guided=True)
FLOW = Objective(loss=noise_to_data, rate=constant, guided=False)
