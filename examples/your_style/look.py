"""The style: a scene as its film negative, drawn in the palette of the shipped scenes.

The shipped autoencoder has seen flat shapes in eight colours on three grounds, and it decodes little else. So the style
exchanges colours and grounds with each other, instead of adding new ones.
"""

import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from pipeline.scenes.captions import TASKS, Caption, split
from pipeline.scenes.renderer import layout, render

OPPOSITE = {"red": "cyan", "orange": "blue", "yellow": "purple", "green": "pink", "white": "black", "grey": "grey"}
OPPOSITE |= {opposite: name for name, opposite in OPPOSITE.items()}


def negative(caption: Caption) -> Caption:
    """What a picture in the style shows: the caption with opposite colours and grounds; twice, the caption itself."""
    subjects = tuple(replace(one, color=OPPOSITE[one.color] if one.color else None) for one in caption.subjects)
    ground = OPPOSITE[caption.background] if caption.background else None
    return replace(caption, subjects=subjects, background=ground)


def pictures(seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields a caption and its picture in the style, uint8 (64, 64, 3), without end: training captions alone."""
    rng, captions = random.Random(seed), split("train")
    while True:
        caption = rng.choice(captions[rng.choice(TASKS)])
        yield caption.text(), render(layout(negative(caption), rng))
