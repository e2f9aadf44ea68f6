"""Noise levels: base level u -> shifted sigma -> timestep = 1000 sigma, all in float64."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SCHEDULER_CLASS = "FlowMatchEulerDiscreteScheduler"
NUM_TRAIN_TIMESTEPS = 1000
LEVEL_TOLERANCE = 1e-9  # 1 - i / N against a threshold typed with two digits


def base_levels(num_steps: int) -> Tensor:
    """u_i = 1 - i / num_steps for i = 0 .. num_steps - 1, shape (num_steps,).

    Raises:
        ValueError: num_steps is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    return 1 - torch.arange(num_steps, dtype=torch.float64) / num_steps


def shift(u: Tensor, mu: float) -> Tensor:
    """sigma = e^mu / (e^mu + 1 / u - 1): the odds of u times e^mu. Esser et al., arXiv 2403.03206, eq. 23."""
    u = u.to(torch.float64)
    return math.exp(mu) * u / (math.exp(mu) * u + (1 - u))


def unshift(sigma: Tensor, mu: float) -> Tensor:
    """The u with shift(u, mu) = sigma."""
    return shift(sigma, -mu)


def resolution_mu(num_tokens: int, base_seq: int, max_seq: int, base_shift: float, max_shift: float) -> float:
    """mu on the line through (base_seq, base_shift) and (max_seq, max_shift) at num_tokens latent tokens."""
    slope = (max_shift - base_shift) / (max_seq - base_seq)
    return base_shift + slope * (num_tokens - base_seq)


def stretch_terminal(sigmas: Tensor, shift_terminal: float) -> Tensor:
    """1 - (1 - sigma) (1 - shift_terminal) / (1 - sigma_last): keeps sigma = 1 and moves the last to shift_terminal.

    Args:
        sigmas: Decreasing levels without the final 0, shape (S,).
        shift_terminal: Where the last one goes.

    Raises:
        ValueError: The last sigma is 1, which no stretch can move.
    """
    sigmas = sigmas.to(torch.float64)
    if sigmas[-1] >= 1:
        raise ValueError(f"stretch_terminal needs a last sigma below 1, got {float(sigmas[-1])}")
    return 1 - (1 - sigmas) * (1 - shift_terminal) / (1 - sigmas[-1])


@dataclass(frozen=True)
class Schedule:
    """How one model at one resolution turns base levels into noise levels."""

    mu: float
    """Log of the factor on the odds of u."""
    shift_terminal: float | None = None
    """Where the last level of a run is stretched to; None = no stretch."""

    def sigmas(self, u: Tensor | Sequence[float]) -> Tensor:
        """The noise levels of a run that starts a step at each u, then 0.

        Args:
            u: Decreasing base levels in (0, 1], shape (S,).

        Returns:
            Decreasing sigmas, float64, shape (S + 1,).

        Raises:
            ValueError: u is empty, leaves (0, 1] or does not decrease.
        """
        u = torch.as_tensor(u, dtype=torch.float64)
        if u.ndim != 1 or len(u) == 0:
            raise ValueError(f"u must be a list of at least one base level, got shape {tuple(u.shape)}")
        if u[0] > 1 or u[-1] <= 0 or (u.diff() >= 0).any():
            raise ValueError(f"u must decrease within (0, 1], got {[round(level, 6) for level in u.tolist()]}")
        sigmas = shift(u, self.mu)
        if self.shift_terminal:
            sigmas = stretch_terminal(sigmas, self.shift_terminal)
        return torch.cat([sigmas, sigmas.new_zeros(1)])

    @classmethod
    def from_scheduler_config(cls, config: Mapping[str, Any], num_tokens: int) -> "Schedule":
        """The schedule of a diffusers scheduler_config.json for images of num_tokens latent tokens.

        Raises:
            ValueError: The scheduler is no flow-matching Euler one, or has an option that bends its levels otherwise.
        """
        check_scheduler(config)
        return cls(_log_odds_factor(config, num_tokens), config.get("shift_terminal"))


def check_scheduler(config: Mapping[str, Any]) -> None:
    """Raises ValueError unless a scheduler_config.json is a flow-matching Euler one, with levels as `Schedule` has."""
    name = config.get("_class_name")
    if name != SCHEDULER_CLASS:
        raise ValueError(f"the scheduler must be a {SCHEDULER_CLASS}, got {name}")
    for option in UNSUPPORTED_OPTIONS:
        if config.get(option):
            raise ValueError(f"the scheduler's {option} must be off, got {config[option]}")
    timesteps = config.get("num_train_timesteps", NUM_TRAIN_TIMESTEPS)
    if timesteps != NUM_TRAIN_TIMESTEPS:
        raise ValueError(f"the scheduler's num_train_timesteps must be {NUM_TRAIN_TIMESTEPS}, got {timesteps}")


UNSUPPORTED_OPTIONS = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_flow_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
)


def _log_odds_factor(config: Mapping[str, Any], num_tokens: int) -> float:
    """diffusers' own defaults stand in for keys that old configs lack."""
    if not config.get("use_dynamic_shifting", False):
        return math.log(config.get("shift", 1.0))
    mu = resolution_mu(
        num_tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )
    return mu if config.get("time_shift_type", "exponential") == "exponential" else math.log(mu)
