"""Compares an arm's number with the teacher's. Intervals are over prompts for scores, over subsets for distances."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.benchmarking import distances
from pipeline.benchmarking.settings import Settings
from pipeline.evaluation.benchmarks import statistics
from pipeline.evaluation.benchmarks.official import Metric
from pipeline.evaluation.scores.retention import LEVEL


def metric(
    asked: Metric, numbers: np.ndarray, reference: np.ndarray | None, categories: np.ndarray, settings: Settings
) -> dict[str, Any]:
    """An arm's number, the teacher's, their ratio and difference, with paired bootstrap intervals over prompts.

    Args:
        asked: The metric, which turns rows into a number.
        numbers: The arm's rows, float64 (P, F).
        reference: The teacher's rows, or None.
        categories: int64 (P,); prompts are resampled within each category.
        settings: Resamples and seed.

    Returns:
        The fields of `Row` from `value` to `difference_high`.
    """
    both = numbers if reference is None else np.concatenate([numbers, reference], axis=1)
    sums, counts = statistics.resampled(both, categories, settings.bootstrap, settings.seed)
    width = numbers.shape[1]
    ours, value = asked.statistic(sums[:, :, :width], counts), statistics.value(asked.statistic, numbers, categories)
    low, high = _ends(ours)
    found: dict[str, Any] = {"value": value, "low": low, "high": high}
    if reference is None:
        return found
    theirs = asked.statistic(sums[:, :, width:], counts)
    teacher = statistics.value(asked.statistic, reference, categories)
    found |= {"teacher": teacher, "difference": value - teacher}
    found["difference_low"], found["difference_high"] = _ends(ours - theirs)
    if asked.retained and teacher > 0:
        found["retention"] = value / teacher
        found["retention_low"], found["retention_high"] = _ends(ours[theirs > 0] / theirs[theirs > 0])
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


def _ends(draws: np.ndarray) -> tuple[float | None, float | None]:
    if not len(draws):
        return None, None
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
