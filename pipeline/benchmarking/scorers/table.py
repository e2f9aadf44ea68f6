"""Every in-process scorer, by its name."""

from __future__ import annotations

from pipeline import names
from pipeline.benchmarking.scorers import Entry
from pipeline.benchmarking.scorers.brightness import BRIGHTNESS
from pipeline.benchmarking.scorers.clip_score import CLIP
from pipeline.benchmarking.scorers.hps import HPS
from pipeline.benchmarking.scorers.inception import INCEPTION, INCEPTION_PATCH

SCORERS: dict[str, Entry] = {
    "brightness": BRIGHTNESS,
    "clip": CLIP,
    "hpsv2.1": HPS,
    "inception": INCEPTION,
    "inception_patch": INCEPTION_PATCH,
}


def find(name: str) -> Entry:
    """A scorer by its name. Raises ValueError with the nearest name where there is none."""
    names.check("the scorer", name, list(SCORERS))
    return SCORERS[name]
