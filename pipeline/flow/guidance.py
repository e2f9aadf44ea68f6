"""Guidance around a velocity."""

from collections.abc import Callable

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


def forwards(scale: float) -> int:
    """Transformer forwards per step at this true_cfg_scale; as in diffusers, guidance is on above 1."""
    return 2 if scale > 1 else 1
