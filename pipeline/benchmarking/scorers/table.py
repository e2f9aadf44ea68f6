"""Every in-process scorer, by its name."""

from __future__ import annotations

from pipeline import names
from pipeline.benchmarking.scorers import Entry
from pipeline.benchmarking.scorers.brightness import BRIGHTNESS

SCORERS: dict[str, Entry] = {
    "brightness": BRIGHTNESS,
}


def find(name: str) -> Entry:
    """A scorer by its name. Raises ValueError with the nearest name where there is none."""
    names.check("the scorer", name, list(SCORERS))
    return SCORERS[name]
