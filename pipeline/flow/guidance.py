"""Guidance around a velocity."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""v(x, sigma) with x (B, ...) and sigma (B,); the shape of x."""


def true_cfg(cond: Velocity, uncond: Velocity, scale: float) -> Velocity:
    """v = v_uncond + scale (v_cond - v_uncond). Ho & Salimans, arXiv 2207.12598. At scale 1 or below, `cond` itself."""
    if forwards(scale) == 1:
        return cond

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        v, v_uncond = cond(x, sigma), uncond(x, sigma)
        return v_uncond + scale * (v - v_uncond)

    return velocity


def true_cfg_norm_rescaled(cond: Velocity, uncond: Velocity, scale: float) -> Velocity:
    """true_cfg, scaled per token to the norm of v_cond over the channels (last dimension), as Qwen-Image does."""
    if forwards(scale) == 1:
        return cond

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        v, v_uncond = cond(x, sigma), uncond(x, sigma)
        guided = v_uncond + scale * (v - v_uncond)
        return guided * (torch.norm(v, dim=-1, keepdim=True) / torch.norm(guided, dim=-1, keepdim=True))

    return velocity


ASKED, OFF, REUSED = "asked", "off", "reused"
"""How a guided step gets its guidance: by a second forward; not at all; or as it was in the last step that asked."""
MODES = (ASKED, OFF, REUSED)


class SteeredGuidance:
    """A guided velocity whose guidance can be turned off, or reused, from step to step.

    Args:
        cond: The velocity under the prompts.
        guide: Puts guidance around `cond`, at the cost of a second forward.
    """

    def __init__(self, cond: Velocity, guide: Callable[[Velocity], Velocity]):
        self.mode = ASKED
        self._cond, self._guide = cond, guide
        self._last: tuple[Tensor, Tensor] | None = None  # v_cond and the guided v of the last step that asked

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """v(x, sigma) in the present mode.

        Raises:
            ValueError: The guidance is to be reused before any step asked for it.
        """
        if self.mode == OFF:
            return self._cond(x, sigma)
        if self.mode == REUSED:
            if self._last is None:
                raise ValueError("a step can reuse guidance only after a step that asked for it")
            v_cond, v_guided = self._last
            return self._cond(x, sigma) + (v_guided - v_cond)
        asked: list[Tensor] = []

        def remembering(x: Tensor, sigma: Tensor) -> Tensor:
            asked.append(self._cond(x, sigma))
            return asked[-1]

        v = self._guide(remembering)(x, sigma)
        self._last = asked[-1], v
        return v


def evaluations(modes: Sequence[str] | None, steps: int, scale: float) -> int:
    """Transformer forwards of a run: two in a step that asks for guidance, one in each other; None = all steps ask."""
    if modes is None:
        return steps * forwards(scale)
    return sum(forwards(scale) if mode == ASKED else 1 for mode in modes)


def forwards(scale: float) -> int:
    """Transformer forwards per step at this true_cfg_scale; as in diffusers, guidance is on above 1."""
    return 2 if scale > 1 else 1
