"""Pure functions over tensors: the path between data and noise, its levels, and sampling along it."""

from pipeline.flow.path import (
    interpolate,
    noise_from_velocity,
    secant,
    snr,
    velocity,
    velocity_from_noise,
    velocity_from_x_0,
    x_0_from_velocity,
)

__all__ = [
    "interpolate",
    "noise_from_velocity",
    "secant",
    "snr",
    "velocity",
    "velocity_from_noise",
    "velocity_from_x_0",
    "x_0_from_velocity",
]
