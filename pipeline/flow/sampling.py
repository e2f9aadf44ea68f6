"""Euler over a given grid of noise levels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from pipeline.flow.guidance import Velocity


@torch.no_grad()
def euler_states(velocity: Velocity, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """Yields x at each of sigmas, the first included; NFE = len(sigmas) - 1.

    Args:
        velocity: The field to follow, v(x, sigma) with x (B, ...) and sigma (B,).
        x: Latents at sigmas[0], shape (B, ...).
        sigmas: Decreasing noise levels, shape (S + 1,).
    """
    yield x
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        x = _step(velocity, x, sigma, sigma_next - sigma)
        yield x


def euler(velocity: Velocity, x: Tensor, sigmas: Tensor) -> Tensor:
    """Follows dx/dsigma = v from sigmas[0] to sigmas[-1] and returns x there; arguments as in euler_states."""
    for state in euler_states(velocity, x, sigmas):
        x = state
    return x


@dataclass(frozen=True)
class StepPlan:
    """Noise levels, and the adapter that is active in each step.

    Raises:
        ValueError: The number of adapters, or of given moves, is not the number of steps.
    """

    sigmas: Tensor
    """The level that the model is told in each step, then the end level: decreasing, shape (S + 1,)."""
    adapters: tuple[str | None, ...]
    """Length S; None = the base alone."""
    moves: Tensor | None = None
    """d_sigma by which each step moves the latents, shape (S,); None = from its own level to the next."""

    def __post_init__(self):
        steps = len(self.sigmas) - 1
        if len(self.adapters) != steps:
            raise ValueError(f"a plan of {steps} steps needs as many adapters, got {len(self.adapters)}")
        if self.moves is not None and len(self.moves) != steps:
            raise ValueError(f"a plan of {steps} steps needs as many moves, got {len(self.moves)}")

    @property
    def d_sigmas(self) -> list[float]:
        """By how much each step moves the latents, length S."""
        if self.moves is not None:
            return self.moves.tolist()
        return [sigma_next - sigma for sigma, sigma_next in pairwise(self.sigmas.tolist())]


def fixed_plan(sigmas: Tensor, adapter: str | None = None) -> StepPlan:
    """One adapter, or none, in every step."""
    return StepPlan(sigmas, (adapter,) * (len(sigmas) - 1))


@torch.no_grad()
def sample_plan(velocity: Velocity, x: Tensor, plan: StepPlan, select: Callable[[str | None], None]) -> Tensor:
    """Follows a plan; `select` is told the adapter before the first step and before each step that changes it.

    Args:
        velocity: v(x, sigma) of the model with the selected adapter.
        x: Latents at plan.sigmas[0], shape (B, ...).
        plan: S steps.
        select: Activates an adapter in `velocity`; None = the base alone.

    Returns:
        Latents at plan.sigmas[-1], shape (B, ...).
    """
    for step, (sigma, d_sigma) in enumerate(zip(plan.sigmas.tolist()[:-1], plan.d_sigmas, strict=True)):
        if step == 0 or plan.adapters[step] != plan.adapters[step - 1]:
            select(plan.adapters[step])
        x = _step(velocity, x, sigma, d_sigma)
    return x


def _step(velocity: Velocity, x: Tensor, sigma: float, d_sigma: float) -> Tensor:
    """x + d_sigma v(x, sigma); latents of 16 bits are summed in float32, as diffusers does."""
    wide = torch.promote_types(x.dtype, torch.float32)
    v = velocity(x, torch.full((len(x),), sigma, dtype=wide, device=x.device))
    return (x.to(wide) + d_sigma * v.to(wide)).to(x.dtype)
