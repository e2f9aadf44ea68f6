"""`fd_scenes`: a Fréchet distance between two sets of images over our own features.

The features are computed from pixels by fixed formulas, no trained network: 48 mean colours on a 4 x 4 grid (what is
where), 36 gradient energies by orientation on a 3 x 3 grid (which outlines are where) and 4 band-pass energies over
octaves (how sharp). An image has 88 features, far fewer than there are images, so covariances of a few hundred images
are well conditioned. The features are the same on every machine. They are defined at any resolution, since images are
first resized to 64 x 64. Each feature is divided by its standard deviation over the reference images, so that the
distance has no unit.

It is not FID: other features, other numbers. It compares arms of one evaluation, not papers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F

SIDE = 64  # pixels a side; features are computed at this size
COLOUR_GRID = 4
GRADIENT_GRID = 3
ORIENTATIONS = 4  # of 180 degrees
OCTAVES = 4
DIMENSION = 3 * COLOUR_GRID**2 + ORIENTATIONS * GRADIENT_GRID**2 + OCTAVES
MIN_STD = 1e-3  # least divisor, so that a feature that hardly varies over the reference is not blown up
CHUNK = 64  # images held as floats at a time


def features(images: np.ndarray) -> np.ndarray:
    """Colour, outline and sharpness statistics of images.

    Args:
        images: uint8 (N, H, W, 3).

    Returns:
        float64 (N, 88).

    Raises:
        ValueError: If the array is not uint8 (N, H, W, 3).
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be uint8 of shape (N, H, W, 3), got {images.dtype} {images.shape}")
    rows = [_features(images[i : i + CHUNK]) for i in range(0, len(images), CHUNK)]
    return np.concatenate(rows) if rows else np.empty((0, DIMENSION))


def _features(images: np.ndarray) -> np.ndarray:
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    x = F.adaptive_avg_pool2d(x, SIDE) if min(x.shape[-2:]) >= SIDE else F.interpolate(x, (SIDE, SIDE), mode="bilinear")
    colour = F.adaptive_avg_pool2d(x, COLOUR_GRID).flatten(1)

    # Gradient energy, shared softly by the two nearest orientations so that a small turn is a small change.
    dx = x[..., 1:-1, 2:] - x[..., 1:-1, :-2]
    dy = x[..., 2:, 1:-1] - x[..., :-2, 1:-1]
    strength = torch.sqrt(dx**2 + dy**2)
    angle = torch.remainder(torch.atan2(dy, dx), torch.pi) * (ORIENTATIONS / torch.pi)
    centres = torch.arange(ORIENTATIONS).view(1, 1, -1, 1, 1)
    turn = (angle[:, :, None] - centres).abs()
    share = (1 - torch.minimum(turn, ORIENTATIONS - turn)).clamp(min=0)
    energy = (strength[:, :, None] * share).mean(dim=1)
    outline = F.adaptive_avg_pool2d(energy, GRADIENT_GRID).sqrt().flatten(1)

    bands, level = [], x
    for _ in range(OCTAVES):
        coarser = F.avg_pool2d(level, 2)
        bands.append((level - F.interpolate(coarser, scale_factor=2)).square().mean(dim=(1, 2, 3)).sqrt())
        level = coarser
    return torch.cat([colour, outline, torch.stack(bands, dim=1)], dim=1).double().numpy()


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """A Gaussian fitted to a feature set.

    Attributes:
        mean: float64 (D,).
        covariance: float64 (D, D), over N - 1.
    """

    mean: np.ndarray
    covariance: np.ndarray

    @cached_property
    def root(self) -> np.ndarray:
        """The symmetric square root of the covariance, (D, D)."""
        values, vectors = np.linalg.eigh(self.covariance)
        return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def fitted(features: np.ndarray) -> Gaussian:
    """The Gaussian of a feature set, float64 (N, D) with N at least 2."""
    return Gaussian(mean=features.mean(axis=0), covariance=np.atleast_2d(np.cov(features, rowvar=False)))


def between(sample: Gaussian, reference: Gaussian) -> float:
    """Squared 2-Wasserstein distance of two Gaussians, at least 0; FID where the features are Inception's.

    ||m_s - m_r||^2 + tr(C_s + C_r - 2 (C_r^1/2 C_s C_r^1/2)^1/2) (Dowson and Landau 1982).
    """
    mean_gap = np.square(sample.mean - reference.mean).sum()
    cross = np.linalg.eigvalsh(reference.root @ sample.covariance @ reference.root)
    overlap = np.sqrt(np.maximum(cross, 0)).sum()
    return float(max(mean_gap + np.trace(sample.covariance) + np.trace(reference.covariance) - 2 * overlap, 0.0))


def frechet_distance(sample: np.ndarray, reference: np.ndarray) -> float | None:
    """The distance `between` the Gaussians of two feature sets.

    Every feature is first divided by its standard deviation over the reference.

    Args:
        sample: Features (N, D).
        reference: Features (M, D).

    Returns:
        The distance, at least 0; None when a set has fewer than two members, which have no covariance.

    Raises:
        ValueError: If the sets have different numbers of features.
    """
    if sample.shape[1:] != reference.shape[1:]:
        raise ValueError(f"both feature sets need the same dimension, got {sample.shape[1:]} and {reference.shape[1:]}")
    if min(len(sample), len(reference)) < 2:
        return None
    scale = np.maximum(reference.std(axis=0), MIN_STD)
    return between(fitted(sample / scale), fitted(reference / scale))
