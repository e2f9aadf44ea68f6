"""An endless, seeded stream of captioned scenes, the tasks equally often."""

import random
from collections.abc import Iterator
from itertools import islice

import numpy as np

from pipeline.scenes.captions import TASKS, split
from pipeline.scenes.renderer import layout, render


def scenes(seed: int, split_name: str = "train") -> Iterator[tuple[str, np.ndarray]]:
    """Yields (caption, image uint8 (64, 64, 3)) of one split; every draw is new."""
    rng = random.Random(seed)
    captions = split(split_name)
    while True:
        caption = rng.choice(captions[rng.choice(TASKS)])
        yield caption.text(), render(layout(caption, rng))


def batched(items: Iterator, size: int) -> Iterator[list]:
    """Groups an endless stream into lists of `size`."""
    while True:
        yield list(islice(items, size))
