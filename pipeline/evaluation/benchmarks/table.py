"""Every official benchmark, by its name."""

from __future__ import annotations

from pipeline import names
from pipeline.evaluation.benchmarks.official import OfficialBenchmark

BENCHMARKS: dict[str, OfficialBenchmark] = {}


def find(name: str) -> OfficialBenchmark:
    """A benchmark by its name. Raises ValueError with the nearest name where there is none."""
    names.check("the benchmark", name, list(BENCHMARKS))
    return BENCHMARKS[name]
