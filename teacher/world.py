"""An endless, seeded stream of captioned scenes; all tasks are equally frequent."""

import random
from collections.abc import Iterator
from itertools import islice

import numpy as np

from pipeline.scenes.captions import BACKGROUNDS, COLORS, SHAPES, TASKS, Caption, Subject, split
from pipeline.scenes.renderer import SIZE, layout, render


def scenes(seed: int, split_name: str = "train") -> Iterator[tuple[str, np.ndarray]]:
    """Yields (caption, image uint8 (64, 64, 3)) of one split; every draw is new."""
    rng = random.Random(seed)
    captions = split(split_name)
    while True:
        caption = rng.choice(captions[rng.choice(TASKS)])
        yield caption.text(), render(layout(caption, rng))


def crops(seed: int, side: int) -> Iterator[np.ndarray]:
    """Yields crops, uint8 (side, side, 3), of crowded scenes: two to four objects of any shape and colour."""
    rng = random.Random(seed)
    while True:
        subjects = tuple(Subject(rng.choice(SHAPES), rng.choice(COLORS)) for _ in range(rng.choice((2, 3, 4, 4, 4))))
        image = render(layout(Caption("counting", subjects, None, rng.choice(BACKGROUNDS)), rng))
        for _ in range(2):
            y, x = rng.randrange(SIZE - side + 1), rng.randrange(SIZE - side + 1)
            yield image[y : y + side, x : x + side]


def batched(items: Iterator, size: int) -> Iterator[list]:
    """Groups an endless stream into lists of `size`."""
    while True:
        yield list(islice(items, size))
