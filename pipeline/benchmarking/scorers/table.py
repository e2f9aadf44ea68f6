"""Every in-process scorer, by its name."""

from __future__ import annotations

from pipeline import names
from pipeline.benchmarking.scorers import Entry
from pipeline.benchmarking.scorers.brightness import BRIGHTNESS
from pipeline.benchmarking.scorers.clip_score import CLIP
from pipeline.benchmarking.scorers.hps import HPS
from pipeline.benchmarking.scorers.inception import INCEPTION, INCEPTION_PATCH
from pipeline.benchmarking.scorers.longtext_ocr import LONGTEXT_OCR
from pipeline.benchmarking.scorers.oneig_alignment import ONEIG_ALIGNMENT
from pipeline.benchmarking.scorers.oneig_text import ONEIG_TEXT
from pipeline.benchmarking.scorers.vqa_flant5 import VQA_FLANT5
from pipeline.benchmarking.scorers.vqa_qwen import VQA_QWEN

SCORERS: dict[str, Entry] = {
    "brightness": BRIGHTNESS,
    "clip": CLIP,
    "hpsv2.1": HPS,
    "inception": INCEPTION,
    "inception_patch": INCEPTION_PATCH,
    "longtext_ocr": LONGTEXT_OCR,
    "oneig_alignment": ONEIG_ALIGNMENT,
    "oneig_text": ONEIG_TEXT,
    "vqascore_clip-flant5-xxl": VQA_FLANT5,
    "vqascore_qwen2.5-vl-7b": VQA_QWEN,
}


def find(name: str) -> Entry:
    """A scorer by its name. Raises ValueError with the nearest name where there is none."""
    names.check("the scorer", name, list(SCORERS))
    return SCORERS[name]
