"""The straight path between data and noise: x_sigma = (1 - sigma) x_0 + sigma noise, v = noise - x_0."""

import torch
from torch import Tensor


def interpolate(x_0: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """x_sigma = (1 - sigma) x_0 + sigma noise; sigma a scalar or (B,). Lipman et al., arXiv 2210.02747."""
    sigma = _expand(sigma, x_0)
    return (1 - sigma) * x_0 + sigma * noise


def velocity(x_0: Tensor, noise: Tensor) -> Tensor:
    """v = noise - x_0, the derivative of x_sigma by sigma."""
    return noise - x_0


def x_0_from_velocity(x: Tensor, v: Tensor, sigma: Tensor | float) -> Tensor:
    """x_0 = x_sigma - sigma v."""
    return x - _expand(sigma, x) * v


def noise_from_velocity(x: Tensor, v: Tensor, sigma: Tensor | float) -> Tensor:
    """noise = x_sigma + (1 - sigma) v."""
    return x + (1 - _expand(sigma, x)) * v


def velocity_from_x_0(x: Tensor, x_0: Tensor, sigma: Tensor | float) -> Tensor:
    """v = (x_sigma - x_0) / sigma, for sigma > 0."""
    return (x - x_0) / _expand(sigma, x)


def velocity_from_noise(x: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """v = (noise - x_sigma) / (1 - sigma), for sigma < 1."""
    return (noise - x) / (1 - _expand(sigma, x))


def secant(x: Tensor, x_next: Tensor, sigma: Tensor | float, sigma_next: Tensor | float) -> Tensor:
    """(x_next - x) / (sigma_next - sigma): the velocity with which one Euler step goes from x to x_next."""
    return (x_next - x) / (_expand(sigma_next, x) - _expand(sigma, x))


def snr(sigma: Tensor | float) -> Tensor:
    """Signal-to-noise ratio ((1 - sigma) / sigma)^2, float64; infinite at sigma = 0."""
    sigma = torch.as_tensor(sigma, dtype=torch.float64)
    return ((1 - sigma) / sigma) ** 2


def _expand(sigma: Tensor | float, x: Tensor) -> Tensor:
    """sigma, a scalar or (B,), in x's dtype, with trailing dimensions to meet x (B, ...)."""
    sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    return sigma.reshape(-1, *[1] * (x.ndim - 1)) if sigma.ndim else sigma
