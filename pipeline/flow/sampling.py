"""Sampling over a given grid of noise levels."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from pipeline import names
from pipeline.flow import solvers
from pipeline.flow.guidance import ASKED, MODES, SteeredGuidance, Velocity
from pipeline.flow.solvers import SOLVERS, Step


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
        step = _step(velocity, x, sigma, sigma_next - sigma)
        x = (step.x + step.d_sigma * step.v).to(x.dtype)
        yield x


def euler(velocity: Velocity, x: Tensor, sigmas: Tensor) -> Tensor:
    """Follows dx/dsigma = v from sigmas[0] to sigmas[-1] and returns x there; arguments as in euler_states."""
    for state in euler_states(velocity, x, sigmas):
        x = state
    return x


@dataclass(frozen=True)
class StepPlan:
    """Noise levels; the adapter and the guidance of each step; and the solver.

    Raises:
        ValueError: The number of adapters, moves or modes is not the number of steps; the solver or a mode is unknown;
            or a solver other than Euler's is asked to move the latents off its own levels.
    """

    sigmas: Tensor
    """The level that the model is told in each step, then the end level: decreasing, shape (S + 1,)."""
    adapters: tuple[str | None, ...]
    """Length S; None = the base alone."""
    moves: Tensor | None = None
    """d_sigma by which each step moves the latents, shape (S,); None = from its own level to the next."""
    solver: str = "euler"
    """One of `solvers.SOLVERS`."""
    guidance: tuple[str, ...] | None = None
    """How each step gets its guidance, one of `guidance.MODES`, length S; None = every step asks for it."""

    def __post_init__(self):
        steps = len(self.sigmas) - 1
        for what, values in (("adapters", self.adapters), ("moves", self.moves), ("modes of guidance", self.guidance)):
            if values is not None and len(values) != steps:
                raise ValueError(f"a plan of {steps} steps needs as many {what}, got {len(values)}")
        solvers.check("solver", self.solver)
        for mode in self.guidance or ():
            names.check("guidance", mode, MODES)
        if self.moves is not None and self.solver != "euler":
            raise ValueError(f"a plan with moves of its own needs the solver euler, got {self.solver}")

    @property
    def d_sigmas(self) -> list[float]:
        """By how much each step moves the latents, length S."""
        if self.moves is not None:
            return self.moves.tolist()
        return [sigma_next - sigma for sigma, sigma_next in pairwise(self.sigmas.tolist())]

    def tail(self, first: int) -> "StepPlan":
        """The plan from the step `first` on."""
        rest = slice(first, None)
        return replace(
            self,
            sigmas=self.sigmas[rest],
            adapters=self.adapters[rest],
            moves=None if self.moves is None else self.moves[rest],
            guidance=self.guidance and self.guidance[rest],
        )


def adapter_at(level: float, starts: Mapping[str, float]) -> str:
    """The adapter of a level: above a handoff that of the phase before it, from the handoff on that of the phase after.

    Args:
        level: A base level u. Models and resolutions turn it into different sigmas, but never change the order.
        starts: The base level at which each adapter's phase starts, in the order of the phases, from 1 down.
    """
    return [name for name, start in starts.items() if level <= start][-1]


def fixed_plan(sigmas: Tensor, adapter: str | None = None, **how) -> StepPlan:
    """One adapter, or none, in every step; `how` are further fields of the plan."""
    return StepPlan(sigmas, (adapter,) * (len(sigmas) - 1), **how)


@torch.no_grad()
def sample_plan(
    velocity: Velocity,
    x: Tensor,
    plan: StepPlan,
    select: Callable[[str | None], None],
    noise: Callable[[int], Tensor] | None = None,
    hold: Callable[[Tensor, float], Tensor] | None = None,
) -> Tensor:
    """Follows a plan; `select` is told the adapter before the first step and before each step that changes it.

    Args:
        velocity: v(x, sigma) of the model with the selected adapter; a `SteeredGuidance` for a plan with modes of
            guidance.
        x: Latents at plan.sigmas[0], shape (B, ...).
        plan: S steps.
        select: Activates an adapter in `velocity`; None = the base alone.
        noise: (step) -> fresh noise in x's shape, for the solver `renoise`.
        hold: (x, sigma) -> x, called at the end of each step with the level there: puts back what must not change.

    Returns:
        Latents at plan.sigmas[-1], shape (B, ...).

    Raises:
        ValueError: The plan needs fresh noise or modes of guidance, and `noise` or `velocity` has none.
    """
    if plan.guidance is not None and not isinstance(velocity, SteeredGuidance):
        raise ValueError("a plan with modes of guidance needs a guided velocity, got one without guidance")
    before: Step | None = None
    levels = plan.sigmas.tolist()
    for number, (sigma, d_sigma) in enumerate(zip(levels[:-1], plan.d_sigmas, strict=True)):
        if number == 0 or plan.adapters[number] != plan.adapters[number - 1]:
            select(plan.adapters[number])
        if isinstance(velocity, SteeredGuidance):
            velocity.mode = plan.guidance[number] if plan.guidance else ASKED
        step = _step(velocity, x, sigma, d_sigma)
        x = SOLVERS[plan.solver](step, before, partial(_fresh, noise, number)).to(x.dtype)
        if hold is not None:
            x = hold(x, levels[number + 1])
        before = step
    return x


def _fresh(noise: Callable[[int], Tensor] | None, number: int) -> Tensor:
    if noise is None:
        raise ValueError("the solver renoise needs fresh noise, got none")
    return noise(number)


def _step(velocity: Velocity, x: Tensor, sigma: float, d_sigma: float) -> Step:
    """The step from x at sigma; latents of 16 bits are summed in float32, as diffusers does."""
    wide = torch.promote_types(x.dtype, torch.float32)
    v = velocity(x, torch.full((len(x),), sigma, dtype=wide, device=x.device))
    return Step(x.to(wide), v.to(wide), sigma, d_sigma)
