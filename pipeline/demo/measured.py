"""What is known of a bundle's quality: its retention, from an evaluation on this machine or from the registry."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts import EVALUATION, read_json
from pipeline.demo import versions
from pipeline.evaluation.recipes import PRODUCT

OTHERS = "evaluation-*"  # the folders that `glance evaluate` makes


@dataclass(frozen=True)
class Retention:
    """The student's score over the teacher's, with its 95 % interval where that is known."""

    value: float
    low: float | None
    high: float | None
    source: str


def retention(digest: str, model: str | None = None, here: Path = Path()) -> Retention | None:
    """The retention of the bundle with this digest; None if nobody measured it.

    Args:
        digest: Of the bundle.
        model: The registered model whose versions are looked up; None = none.
        here: The folder with the evaluations.

    Raises:
        ConnectionError: The registry cannot be opened, or refuses.
    """
    for file in (here / EVALUATION / "metrics.json", *sorted(here.glob(f"{OTHERS}/metrics.json"))):
        found = _evaluated(file, digest)
        if found:
            return found
    return next(_registered(model, digest), None) if model else None


def _evaluated(file: Path, digest: str) -> Retention | None:
    try:
        metrics = read_json(file)
        row = metrics["arms"][PRODUCT] if metrics["bundle_digest"] == digest else {}
    except (OSError, ValueError, KeyError, TypeError):  # no evaluation, or none of a bundle
        return None
    return _of(row, file.parent.as_posix())


def _registered(model: str, digest: str) -> Iterator[Retention]:
    for version in versions.with_digest(model, digest):
        found = _of(version.tags, f"the registry, {version}")
        if found:
            yield found


def _of(row: Mapping[str, Any], source: str) -> Retention | None:
    if row.get("retention") is None:
        return None
    low, high = (None if row.get(key) is None else float(row[key]) for key in ("retention_low", "retention_high"))
    return Retention(float(row["retention"]), low, high, source)
