"""Retention and other statistics of an arm, with 95 % intervals over prompts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

LEVEL = 0.95
Z = 1.959963984540054  # standard normal quantile of (1 + LEVEL) / 2
RESAMPLES_AT_ONCE = 250  # bounds the memory of the resampling weights in float64, (250, prompts)


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; all None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


UNDEFINED = Estimate(None, None, None)


def proportion(passed: np.ndarray) -> Estimate:
    """Share of prompts that passed, with Wilson's interval (Wilson 1927), which stays valid at 0 and 1.

    Args:
        passed: bool (N,), N at least 1.

    Raises:
        ValueError: If there is no prompt.
    """
    n = len(passed)
    if n == 0:
        raise ValueError("a score needs at least 1 prompt, got 0")
    p = float(np.mean(passed))
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    low, high = float(centre - half), float(centre + half)
    return Estimate(p, min(low, p) if p else 0.0, max(high, p) if p < 1 else 1.0)  # rounding can put 0 and 1 outside


def resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means of bootstrap resamples of prompts, the same resamples for every row, so that rows stay paired.

    Args:
        values: (A, N), one row for an arm, one column for a prompt.
        resamples: How many resamples R.
        seed: Of the resampling.

    Returns:
        float64 (R, A).

    Raises:
        ValueError: If there is no prompt or no resample.
    """
    if resamples < 1:
        raise ValueError(f"evaluation.bootstrap must be at least 1, got {resamples}")
    num_prompts = values.shape[1]
    if num_prompts == 0:
        raise ValueError("a bootstrap needs at least 1 prompt, got 0")
    weights = _weights(num_prompts, resamples, seed)
    means = np.empty((resamples, len(values)))
    for first in range(0, resamples, RESAMPLES_AT_ONCE):
        some = slice(first, first + RESAMPLES_AT_ONCE)
        means[some] = weights[some].astype(np.int64) @ values.T.astype(np.float64) / num_prompts
    return means


@lru_cache(maxsize=1)
def _weights(num_prompts: int, resamples: int, seed: int) -> np.ndarray:
    """How often each resample draws each prompt, int32 (R, N): drawn once for all arms and metrics."""
    generator = np.random.default_rng(seed)
    weights = np.empty((resamples, num_prompts), dtype=np.int32)
    share = np.full(num_prompts, 1 / num_prompts)
    for first in range(0, resamples, RESAMPLES_AT_ONCE):
        count = min(RESAMPLES_AT_ONCE, resamples - first)
        weights[first : first + count] = generator.multinomial(num_prompts, share, size=count)
    weights.flags.writeable = False
    return weights


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The ends of the 95 % percentile interval of bootstrap draws."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def ratio_of_means(values: np.ndarray, reference: np.ndarray, resamples: int, seed: int) -> Estimate:
    """mean(values) / mean(reference) with a paired percentile bootstrap over prompts.

    Args:
        values: (N,), an arm's metric on each prompt.
        reference: (N,), the teacher's on the same prompts.
        resamples: Bootstrap resamples.
        seed: Of the resampling.

    Returns:
        The ratio; UNDEFINED where the reference's mean is 0.
    """
    if np.mean(reference) == 0:
        return UNDEFINED
    means = resampled_means(np.stack([values, reference]), resamples, seed)
    means = means[means[:, 1] > 0]
    return Estimate(float(np.mean(values) / np.mean(reference)), *interval(means[:, 0] / means[:, 1]))


def difference_of_means(values: np.ndarray, other: np.ndarray, resamples: int, seed: int) -> Estimate:
    """mean(values) - mean(other) with a paired percentile bootstrap over prompts; above 0: `values` is larger."""
    means = resampled_means(np.stack([values, other]), resamples, seed)
    return Estimate(float(np.mean(values) - np.mean(other)), *interval(means[:, 0] - means[:, 1]))
