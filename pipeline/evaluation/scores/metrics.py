"""Paired distances between images, and their spread. All images are uint8 arrays (N, H, W, 3)."""

from __future__ import annotations

import numpy as np
import torch

SSIM_SIGMA = 1.5  # pixels, width of the Gaussian window
SSIM_WINDOW = 11  # taps of the window, 3.5 sigma to each side
SSIM_K1, SSIM_K2 = 0.01, 0.03  # stabilising constants, as fractions of the data range
ROUNDING_MSE = 1 / 12  # mean squared error of rounding to 8 bits; two images cannot be told apart below it
CHUNK = 64  # images held as floats at a time


def _check_pair(images: np.ndarray, reference: np.ndarray) -> None:
    for name, array in (("images", images), ("reference", reference)):
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
            raise ValueError(f"{name} must be uint8 of shape (N, H, W, 3), got {array.dtype} {array.shape}")
    if images.shape != reference.shape:
        raise ValueError(f"images must have the shape of their reference {reference.shape}, got {images.shape}")


def psnr(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio per image, 10 log10(255^2 / MSE) in dB.

    The MSE is floored at 1/12 grey levels squared, the error of 8-bit rounding, so that equal images give
    58.9 dB instead of infinity and a mean over images stays finite.

    Args:
        images: uint8 (N, H, W, 3).
        reference: uint8 (N, H, W, 3), the paired images.

    Returns:
        float64 (N,).

    Raises:
        ValueError: If an array is not uint8 (N, H, W, 3), or the shapes differ.
    """
    _check_pair(images, reference)
    mse = np.empty(len(images))
    for i in range(0, len(images), CHUNK):
        error = images[i : i + CHUNK].astype(np.float32) - reference[i : i + CHUNK].astype(np.float32)
        mse[i : i + CHUNK] = np.square(error).mean(axis=(1, 2, 3), dtype=np.float64)
    return 10 * np.log10(255**2 / np.maximum(mse, ROUNDING_MSE))


def ssim(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Structural similarity per image (Wang et al. 2004, equation 13), mean over channels and pixels.

    SSIM = (2 m_x m_y + C1)(2 s_xy + C2) / ((m_x^2 + m_y^2 + C1)(s_x^2 + s_y^2 + C2)), with means and (co)variances
    under a Gaussian window (sigma 1.5, 11 taps) and only the places where the whole window fits.

    Args:
        images: uint8 (N, H, W, 3), H and W at least 11.
        reference: uint8 (N, H, W, 3), the paired images.

    Returns:
        float64 (N,), 1 for equal images.

    Raises:
        ValueError: If an array is not uint8 (N, H, W, 3), the shapes differ, or a side is below 11 pixels.
    """
    _check_pair(images, reference)
    if min(images.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(f"ssim needs images of at least {SSIM_WINDOW} pixels a side, got {images.shape[1:3]}")
    offset = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    window = torch.exp(-(offset**2) / (2 * SSIM_SIGMA**2))
    weights: list[float] = (window / window.sum()).tolist()
    c1, c2 = SSIM_K1**2, SSIM_K2**2

    def blur(planes: torch.Tensor) -> torch.Tensor:
        for dim in (1, 2):  # shifted sums: many times faster on a CPU than a convolution of single channels
            length = planes.shape[dim] - SSIM_WINDOW + 1
            total = weights[0] * planes.narrow(dim, 0, length)
            for tap in range(1, SSIM_WINDOW):
                total.add_(planes.narrow(dim, tap, length), alpha=weights[tap])
            planes = total
        return planes

    values = np.empty(len(images))
    for i in range(0, len(images), CHUNK):
        x, y = (
            torch.from_numpy(np.ascontiguousarray(a[i : i + CHUNK])).permute(0, 3, 1, 2).flatten(0, 1) / 255
            for a in (images, reference)
        )
        mean_x, mean_y = blur(x), blur(y)
        # Moments about 1/2 instead of 0: the same (co)variances, with less float32 cancellation.
        x, y, centre_x, centre_y = x - 0.5, y - 0.5, mean_x - 0.5, mean_y - 0.5
        covariance = blur(x * y) - centre_x * centre_y
        variances = blur(x * x + y * y) - centre_x**2 - centre_y**2
        quality = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
        quality = quality / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))
        values[i : i + CHUNK] = quality.mean(dim=(1, 2)).view(-1, 3).mean(dim=1).double().numpy()
    return values


def seed_spread(images: np.ndarray) -> np.ndarray:
    """Mean distance between the images that different seeds give for one prompt.

    The distance of two images is their root mean squared pixel difference in grey levels; the mean runs over all pairs
    of seeds. `diversity` of an arm is its mean spread over the teacher's: 1 keeps the teacher's variety, 0 is collapse.

    Args:
        images: uint8 (P, S, H, W, 3), S seeds of P prompts, S at least 2.

    Returns:
        float64 (P,).

    Raises:
        ValueError: If there are fewer than two seeds, or the array is not uint8 with five dimensions.
    """
    if images.dtype != np.uint8 or images.ndim != 5:
        raise ValueError(f"images must be uint8 of shape (P, S, H, W, 3), got {images.dtype} {images.shape}")
    num_seeds = images.shape[1]
    if num_seeds < 2:
        raise ValueError(f"evaluation.diversity_seeds must be at least 2, got {num_seeds}")
    spread = np.empty(len(images))
    first, second = np.triu_indices(num_seeds, k=1)
    for i, of_prompt in enumerate(images):
        pixels = of_prompt.reshape(num_seeds, -1).astype(np.float64)
        squares = np.square(pixels).sum(axis=1)
        distances = squares[:, None] + squares[None] - 2 * pixels @ pixels.T
        spread[i] = np.sqrt(np.maximum(distances[first, second], 0) / pixels.shape[1]).mean()
    return spread
