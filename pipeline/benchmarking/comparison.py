"""Compares an arm's number with the teacher's. Intervals are over prompts for scores, over subsets for distances."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.benchmarking import distances
from pipeline.benchmarking.settings import Settings
from pipeline.evaluation.benchmarks import statistics
from pipeline.evaluation.benchmarks.official import Metric
from pipeline.evaluation.scores.retention import interval


def metric(
    asked: Metric, numbers: np.ndarray, reference: np.ndarray | None, categories: np.ndarray, settings: Settings
) -> dict[str, Any]:
    """An arm's number, the teacher's, their ratio and difference, with paired bootstrap intervals over prompts.

    Args:
        asked: The metric, which turns rows into a number.
        numbers: The arm's rows, float64 (P, F).
        reference: The teacher's rows, or None.
        categories: int64 (P,). For a mean over categories, prompts are resampled within each category.
        settings: Resamples and seed.

    Returns:
        The fields of `Row` from `value` to `interval`; no interval where a category has one prompt.
    """
    if asked.statistic is not statistics.mean_of_categories:
        categories = np.zeros(len(numbers), dtype=np.int64)
    value = statistics.value(asked.statistic, numbers, categories)
    found: dict[str, Any] = {"value": value}
    if reference is not None:
        teacher = statistics.value(asked.statistic, reference, categories)
        found |= {"teacher": teacher, "difference": value - teacher}
        if asked.retained and teacher > 0:
            found["retention"] = value / teacher
    if np.bincount(categories).min() < 2:  # one prompt has no spread
        return found

    both = numbers if reference is None else np.concatenate([numbers, reference], axis=1)
    sums, counts = statistics.resampled(both, categories, settings.bootstrap, settings.seed)
    ours = asked.statistic(sums[:, :, : numbers.shape[1]], counts)
    found["interval"] = "bootstrap over prompts"
    found["low"], found["high"] = interval(ours)
    if reference is not None:
        theirs = asked.statistic(sums[:, :, numbers.shape[1] :], counts)
        found["difference_low"], found["difference_high"] = interval(ours - theirs)
        if "retention" in found:
            found["retention_low"], found["retention_high"] = interval(ours[theirs > 0] / theirs[theirs > 0])
    return found


def _fid(own: np.ndarray, reference: np.ndarray, teacher: np.ndarray | None, seed: int) -> dict[str, Any]:
    value = distances.fid(own, reference)
    if teacher is None:
        return {"value": value}
    found = distances.fid_difference(own, teacher, reference, seed=seed)
    return {
        "value": value,
        "teacher": distances.fid(teacher, reference),
        "difference": found.value,
        "difference_low": found.low,
        "difference_high": found.high,
        "interval": "subsampling",
    }


def _kid(own: np.ndarray, reference: np.ndarray, teacher: np.ndarray | None, seed: int) -> dict[str, Any]:
    """KID over 100 subsets of up to 1,000 images; the interval is one standard deviation to each side."""
    subset = min(1000, len(own), len(reference))
    mean, spread = distances.kid(own, reference, subset, 100, seed)
    found: dict[str, Any] = {
        "value": mean,
        "low": mean - spread,
        "high": mean + spread,
        "interval": "standard deviation of subsets",
    }
    if teacher is not None:
        theirs, _ = distances.kid(teacher, reference, subset, 100, seed)
        found |= {"teacher": theirs, "difference": mean - theirs}
    return found


DISTANCES = {"fid": _fid, "kid": _kid}
