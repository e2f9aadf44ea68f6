"""The results of an evaluation: metrics.json and latency.json, read as one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.artifacts import EVALUATION, LATENCY, read_json

MEASURED = (("bundle_digest", "bundle"), ("teacher_digest", "base model"))
"""Keys whose values must agree in both files, and the words for them in messages."""


def latency_file(evaluation: Path) -> Path:
    """The latency.json of an evaluation: in a folder of its own for the pipeline's, else beside metrics.json."""
    return LATENCY if evaluation.resolve() == EVALUATION.resolve() else evaluation / "latency.json"


def read(evaluation: Path) -> dict:
    """The content of an evaluation's metrics.json, with the times of latency.json in its rows.

    The metrics.json of an earlier version holds the times itself; such a folder needs no latency.json.

    Raises:
        FileNotFoundError: There is no metrics.json.
        ValueError: A file is no JSON, the times are missing, or the two files measure different arms or models.
    """
    metrics, file = read_json(evaluation / "metrics.json"), latency_file(evaluation)
    if file.is_file():
        return together(metrics, read_json(file), file)
    if not _timed(metrics):
        how = "time the arms with `dvc repro time_arms`" if file == LATENCY else "evaluate the bundle anew"
        raise ValueError(f"{file} is missing: {how}")
    return metrics


def together(metrics: Mapping, latency: Mapping, file: Path = LATENCY) -> dict:
    """The contents of metrics.json and of latency.json as one.

    Args:
        metrics: What `evaluate` wrote.
        latency: What `time_arms` wrote.
        file: The path of latency.json, for messages.

    Raises:
        ValueError: The two files measure different arms or models.
    """
    for key, what in MEASURED:
        if latency.get(key) != metrics.get(key):
            raise ValueError(
                f"{file} must be of the {what} that metrics.json measures, {metrics.get(key)}, got {latency.get(key)}:"
                " run both anew"
            )
    arms, times = metrics.get("arms", {}), latency.get("arms", {})
    if arms.keys() != times.keys():
        raise ValueError(f"{file} must hold the arms {', '.join(arms)}, got {', '.join(times)}: time them anew")
    return {**latency, **metrics, "arms": {name: {**row, **times[name]} for name, row in arms.items()}}


def _timed(metrics: Mapping) -> bool:
    """Whether a metrics.json of an earlier version holds times."""
    return "latency_batches" in metrics
