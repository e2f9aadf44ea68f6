"""How the rows of all prompts become one number, for all bootstrap resamples at once.

A statistic takes the sums of a resample. So a resample costs one matrix product, and the arm and the teacher share the
same resamples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Sums float64 (R, G, F) and counts (R, G), of R resamples, G categories and F fields, to one number each, (R,)."""


def mean(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean of the first field over all prompts, (R,)."""
    return sums[:, :, 0].sum(axis=1) / counts.sum(axis=1)


def mean_times_100(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """100 x the mean of the first field over all prompts, (R,): as DPG-Bench prints it."""
    return 100 * mean(sums, counts)


def mean_of_categories(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean over categories of their means of the first field, (R,): GenEval's overall score."""
    return (sums[:, :, 0] / counts).mean(axis=1)


def ratio_of_sums(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The first field's sum over the second's, (R,): words found over words asked for, in LongText-Bench."""
    return sums[:, :, 0].sum(axis=1) / sums[:, :, 1].sum(axis=1)


def resampled(rows: np.ndarray, categories: np.ndarray, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The sums and counts of bootstrap resamples of prompts, drawn within each category.

    Equal shape of rows, categories and seed give equal resamples, so that an arm and the teacher stay paired.

    Args:
        rows: float64 (P, F).
        categories: int64 (P,), from 0 without a gap.
        resamples: R.
        seed: Of the resampling.

    Returns:
        float64 (R, G, F) and int64 (R, G).

    Raises:
        ValueError: There is no prompt, or no resample.
    """
    if not len(rows) or resamples < 1:
        raise ValueError(f"a bootstrap needs prompts and resamples, got {len(rows)} and {resamples}")
    groups = int(categories.max()) + 1
    generator = np.random.default_rng(seed)
    sums, counts = np.zeros((resamples, groups, rows.shape[1])), np.zeros((resamples, groups), dtype=np.int64)
    for group in range(groups):
        own = rows[categories == group]
        for first in range(0, resamples, 250):  # bounds the memory of the weights
            some = min(250, resamples - first)
            weights = generator.multinomial(len(own), np.full(len(own), 1 / len(own)), size=some)
            sums[first : first + some, group] = weights @ own
            counts[first : first + some, group] = len(own)
    return sums, counts


def value(statistic: Statistic, rows: np.ndarray, categories: np.ndarray) -> float:
    """The statistic of all prompts, each once."""
    groups = int(categories.max()) + 1
    sums = np.stack([rows[categories == group].sum(axis=0) for group in range(groups)])[None]
    counts = np.bincount(categories, minlength=groups)[None]
    return float(statistic(sums, counts)[0])
