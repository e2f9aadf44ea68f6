"""Every in-process scorer, by its name."""

from __future__ import annotations

from pipeline import names
from pipeline.benchmarking.scorers import Entry
from pipeline.benchmarking.scorers.vqa_flant5 import VQA_FLANT5

SCORERS: dict[str, Entry] = {
    "vqascore_clip-flant5-xxl": VQA_FLANT5,
}


def find(name: str) -> Entry:
    """A scorer by its name. Raises ValueError with the nearest name where there is none."""
    names.check("the scorer", name, list(SCORERS))
    return SCORERS[name]
