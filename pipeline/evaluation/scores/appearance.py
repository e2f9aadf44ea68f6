"""Colour and detail of single images: what a few-step model tends to shift even where the picture stays the same.

All values are of the gamma-coded pixels, in grey levels of 0 to 255. The primaries are those of sRGB, so luma and
chroma are those of Rec. 709. An arm is compared with the teacher over the same prompts and seeds, see `shift` and
`ratio`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch

LUMA = (0.2126, 0.7152, 0.0722)  # Rec. 709: weights of R, G and B
BLUE, RED = 1.8556, 1.5748  # Rec. 709: divisors that bring B - luma and R - luma to the range of the pixels
FINE = 0.25  # cycles per pixel; half of Nyquist
FLAT = 1e-9  # grey levels, or their squares; what is left of 0 after rounding is less
CHUNK = 64  # images held as floats at a time


@dataclass(frozen=True)
class Appearance:
    """Four numbers of each of N images, float64 (N,).

    Attributes:
        brightness: Mean luma over the pixels, Y = 0.2126 R + 0.7152 G + 0.0722 B.
        chroma: Mean over the pixels of sqrt(Cb^2 + Cr^2), with Cb = (B - Y) / 1.8556 and Cr = (R - Y) / 1.5748; 0 is
            grey.
        contrast: Standard deviation of the luma over the pixels.
        detail: Energy of the luma at spatial frequencies above half of Nyquist, in grey levels squared.
    """

    brightness: np.ndarray
    chroma: np.ndarray
    contrast: np.ndarray
    detail: np.ndarray


def appearance(images: np.ndarray) -> Appearance:
    """Colour and detail of images.

    Args:
        images: uint8 (N, H, W, 3).

    Raises:
        ValueError: If the array is not uint8 (N, H, W, 3).
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be uint8 of shape (N, H, W, 3), got {images.dtype} {images.shape}")
    rows = [_appearance(images[i : i + CHUNK]) for i in range(0, len(images), CHUNK)]
    columns = np.concatenate(rows, axis=1) if rows else np.empty((4, 0))
    return Appearance(*columns)


def concat(parts: list[Appearance]) -> Appearance:
    """The images of several parts, one part after the other."""
    names = [field.name for field in fields(Appearance)]
    return Appearance(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def shift(own: np.ndarray, teacher: np.ndarray) -> float:
    """Mean difference to the teacher over images (N,): above 0 is more than the teacher. Opposite shifts cancel."""
    return float((own - teacher).mean())


def ratio(own: np.ndarray, teacher: np.ndarray) -> float | None:
    """Mean over images (N,) over the teacher's mean: below 1 is less than the teacher; None if the teacher has none.

    A mean of ratios would be ruled by the teacher's flattest images.
    """
    mean = float(teacher.mean())
    return float(own.mean()) / mean if mean > FLAT else None


def _appearance(images: np.ndarray) -> np.ndarray:
    """float64 (4, N): the columns of `Appearance`."""
    red, green, blue = torch.from_numpy(np.ascontiguousarray(images)).double().unbind(-1)
    luma = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    chroma = torch.hypot((blue - luma) / BLUE, (red - luma) / RED)
    centred = luma - luma.mean(dim=(1, 2), keepdim=True)
    contrast = centred.square().mean(dim=(1, 2)).sqrt()
    return torch.stack([luma.mean(dim=(1, 2)), chroma.mean(dim=(1, 2)), contrast, _detail(centred)]).numpy()


def _detail(luma: torch.Tensor) -> torch.Tensor:
    """Energy above FINE of luma without its mean, (N, H, W) to (N,).

    sum |F(w x)|^2 over frequencies with sqrt(f_x^2 + f_y^2) > 1/4 cycle per pixel, over H W sum w^2: the variance that
    these frequencies have. w is a Hann window, since the jump between opposite edges of an image is no detail of it.
    """
    height, width = luma.shape[1:]
    rows, columns = (torch.hann_window(side, dtype=luma.dtype) for side in (height, width))
    window = rows[:, None] * columns
    power = torch.fft.fft2(luma * window).abs().square()
    f_y, f_x = (torch.fft.fftfreq(side, dtype=luma.dtype) for side in (height, width))
    fine = torch.hypot(f_y[:, None], f_x.expand(height, width)) > FINE
    return (power * fine).sum(dim=(1, 2)) / (height * width * window.square().sum())
