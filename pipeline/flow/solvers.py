"""One step of a sampler along the path, from the velocity at its start and from the step before it."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from pipeline import flow, names


@dataclass(frozen=True)
class Step:
    """A step of a run, as soon as the velocity at its start is known."""

    x: Tensor
    """Latents at the start, (B, ...), at least float32."""
    v: Tensor
    """The velocity there, in x's shape and dtype."""
    sigma: float
    """The noise level that the model was told."""
    d_sigma: float
    """By how much the level changes: negative."""


Noise = Callable[[], Tensor]
"""Draws fresh noise in the shape of the latents."""
Solver = Callable[[Step, Step | None, Noise], Tensor]
"""(this step, the step before it or None, noise) -> the latents at this step's end."""


def euler(step: Step, before: Step | None, noise: Noise) -> Tensor:
    """x' = x + h v, h = d_sigma: of first order."""
    return step.x + step.d_sigma * step.v


def ab2(step: Step, before: Step | None, noise: Noise) -> Tensor:
    """x' = x + h ((1 + b) v - b v_before), b = h / (2 h_before): of second order; the first step is Euler's.

    Adams and Bashforth's two-step method for steps of different length. Exact where v is linear in sigma.
    """
    if before is None:
        return euler(step, before, noise)
    b = ab2_weight(step.d_sigma, before.d_sigma)
    return step.x + step.d_sigma * ((1 + b) * step.v - b * before.v)


def ab2_weight(d_sigma: float, d_sigma_before: float) -> float:
    """b = h / (2 h_before), the weight of the velocity before in a step of `ab2`."""
    return d_sigma / (2 * d_sigma_before)


def dpm2m(step: Step, before: Step | None, noise: Noise) -> Tensor:
    """DPM-Solver++ 2M: x' = r x + (1 - r) D, r = sigma' / sigma. Lu et al., arXiv 2211.01095, algorithm 2.

    D = x_0 + h / (2 h_before) (x_0 - x_0_before) with x_0 = x - sigma v, and h the change of the log SNR's half,
    ln((1 - sigma) / sigma). D = x_0, an Euler step, where there is no step before, where the step before started at
    sigma = 1 and in the step to sigma = 0. As diffusers' DPMSolverMultistepScheduler on flow sigmas does.
    """
    end = step.sigma + step.d_sigma
    if before is None or before.sigma >= 1 or end <= 0:
        return euler(step, before, noise)
    half_log_snr = [math.log((1 - sigma) / sigma) for sigma in (before.sigma, step.sigma, end)]
    h_before, h = (after - start for start, after in pairwise(half_log_snr))
    x_0, x_0_before = (flow.x_0_from_velocity(one.x, one.v, one.sigma) for one in (step, before))
    target = x_0 + h / (2 * h_before) * (x_0 - x_0_before)
    ratio = end / step.sigma
    return ratio * step.x + (1 - ratio) * target


def renoise(step: Step, before: Step | None, noise: Noise) -> Tensor:
    """x' = (1 - sigma') x_0 + sigma' noise, x_0 = x - sigma v: the sampler of consistency models and of DMD2.

    Song et al., arXiv 2303.01469, algorithm 1; diffusers' FlowMatchLCMScheduler.
    """
    x_0, end = flow.x_0_from_velocity(step.x, step.v, step.sigma), step.sigma + step.d_sigma
    return flow.interpolate(x_0, noise().to(x_0), end) if end > 0 else x_0


def secants(states: Tensor, sigmas: Tensor) -> Tensor:
    """The velocities with which Euler's steps go from state to state.

    Args:
        states: Latents at each of `sigmas`, (B, K + 1, ...).
        sigmas: Decreasing levels, (K + 1,).

    Returns:
        (B, K, ...).
    """
    return states.diff(dim=1) / sigmas.diff().to(states).reshape(-1, *[1] * (states.ndim - 2))


def ab2_velocities(states: Tensor, sigmas: Tensor) -> Tensor:
    """The velocities with which the steps of `ab2` go from state to state; arguments as for `secants`.

    Solved step by step: v_0 is the first secant s_0, then v_i = (s_i + b_i v_(i-1)) / (1 + b_i).
    """
    found: list[Tensor] = []
    h = sigmas.diff().tolist()
    for i, secant in enumerate(secants(states, sigmas).unbind(1)):
        b = ab2_weight(h[i], h[i - 1]) if i else 0.0
        found.append((secant + b * found[-1]) / (1 + b) if i else secant)
    return torch.stack(found, 1)


SOLVERS: dict[str, Solver] = {"euler": euler, "ab2": ab2, "dpm2m": dpm2m, "renoise": renoise}

TRAINABLE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"euler": secants, "ab2": ab2_velocities}
"""The solvers of a student, and what its velocities have to be on a recorded path."""


def check(key: str, solver: str) -> None:
    """Raises ValueError, which names `key`, unless there is such a solver."""
    names.check(key, solver, SOLVERS)


def noise_seed(seed: int, step: int) -> int:
    """The seed of the fresh noise that the image of `seed` gets at the end of a step of `renoise`."""
    return int.from_bytes(hashlib.sha256(f"{seed} {step}".encode()).digest()[:7], "big")
