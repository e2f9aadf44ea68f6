"""Noise levels: base level u -> shifted sigma -> timestep = 1000 sigma, all in float64."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SCHEDULER_CLASS = "FlowMatchEulerDiscreteScheduler"
NUM_TRAIN_TIMESTEPS = 1000
LEVEL_TOLERANCE = 1e-9  # for comparing 1 - i / N with a threshold of two digits
MAX_MU = 10  # above it, the first or the last levels are equal in float32
LINE_OF_MU = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
UNSUPPORTED_OPTIONS = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_flow_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
)
SCHEDULER_DEFAULTS = {  # diffusers' defaults, for keys that a file lacks
    "num_train_timesteps": NUM_TRAIN_TIMESTEPS,
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "shift_terminal": None,
    "time_shift_type": "exponential",
    **dict.fromkeys(UNSUPPORTED_OPTIONS, False),
}


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
    """1 - (1 - sigma) (1 - shift_terminal) / (1 - sigma_last): keeps sigma = 1, moves the last level to shift_terminal.

    Args:
        sigmas: Decreasing levels without the final 0, shape (S,).
        shift_terminal: The new last level.

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
            ValueError: As `check_scheduler` does; or the shift leaves no distinct levels for so many tokens.
        """
        check_scheduler(config)
        return cls(_log_odds_factor(SCHEDULER_DEFAULTS | dict(config), num_tokens), config.get("shift_terminal"))


def check_scheduler(config: Mapping[str, Any]) -> None:
    """Refuses a scheduler_config.json whose levels in diffusers are not those of `Schedule`.

    Values that diffusers does not read are not checked: `shift` where use_dynamic_shifting is on, the two points of the
    line of mu where it is off.

    Raises:
        ValueError: The scheduler is no flow-matching Euler one, an option changes its levels, or a value is of
            another type or out of its range.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"the scheduler's configuration must be a JSON object, got {config!r}")
    name = config.get("_class_name")
    if name != SCHEDULER_CLASS:
        fix = "choose a flow-matching model, one that predicts noise or v cannot be followed"
        raise ValueError(f"the scheduler must be a {SCHEDULER_CLASS}, got {name}; {fix}")
    values = SCHEDULER_DEFAULTS | dict(config)

    def require(key: str, fits: bool, rule: str) -> None:
        if not fits:
            raise ValueError(f"the scheduler's {key} must {rule}, got {values[key]!r}")

    for option in UNSUPPORTED_OPTIONS:
        require(option, values[option] == 0, "be false")
    timesteps, terminal = values["num_train_timesteps"], values["shift_terminal"]
    whole = type(timesteps) is int and timesteps == NUM_TRAIN_TIMESTEPS
    require("num_train_timesteps", whole, f"be {NUM_TRAIN_TIMESTEPS}")
    require("use_dynamic_shifting", values["use_dynamic_shifting"] in (True, False, None), "be true or false")
    require("time_shift_type", values["time_shift_type"] in ("exponential", "linear"), "be exponential or linear")
    in_range = terminal is None or _number(terminal) and 0 <= terminal < 1
    require("shift_terminal", in_range, "be null, or at least 0 and below 1")
    if not values["use_dynamic_shifting"]:
        require("shift", _number(values["shift"]) and values["shift"] > 0, "be a number above 0")
        return
    for key in LINE_OF_MU:
        require(key, _number(values[key]), "be a number")
    different = values["max_image_seq_len"] != values["base_image_seq_len"]
    require("max_image_seq_len", different, "differ from base_image_seq_len")


def _number(value: Any) -> bool:
    """Whether a value of JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _log_odds_factor(config: Mapping[str, Any], num_tokens: int) -> float:
    """mu of a checked configuration."""
    if config["use_dynamic_shifting"]:
        keys, mu = "base_shift and max_shift", resolution_mu(num_tokens, *(config[key] for key in LINE_OF_MU))
        if config["time_shift_type"] == "linear":
            mu = math.log(mu) if mu > 0 else -math.inf
    else:
        keys, mu = "shift", math.log(config["shift"])
    if not abs(mu) <= MAX_MU:
        rule = f"give a factor on the odds of u from e^-{MAX_MU} to e^{MAX_MU} for {num_tokens} tokens"
        raise ValueError(f"the scheduler's {keys} must {rule}, got e^{mu:g}")
    return mu
