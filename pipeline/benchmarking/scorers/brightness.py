"""`brightness`: the mean luminance of an image, for the self-test; this scorer needs no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pipeline.benchmarking.scorers import Entry
from pipeline.evaluation.benchmarks.official import Item

if TYPE_CHECKING:
    import torch


class Brightness:
    """The loaded scorer."""

    def fields(self, images: Sequence[Image.Image], items: Sequence[Item]) -> list[dict[str, float | str]]:
        """The mean luminance of each image, from 0 to 1."""
        return [{"brightness": float(np.asarray(image.convert("L")).mean()) / 255} for image in images]


def load(places: Mapping[str, Path], device: torch.device) -> Brightness:
    """Loads the scorer: there is nothing to load."""
    return Brightness()


BRIGHTNESS = Entry(
    name="brightness",
    version=1,
    about="The mean luminance, from 0 to 1.",
    weights=(),
    packages=("pillow",),
    load=load,
)
