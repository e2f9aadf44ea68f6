"""How long an image takes. All works are timed in one run, interleaved, so that a slow minute hits them alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Work:
    """A way from prompts to images, in the three parts that are timed.

    Attributes:
        prepare: Untimed; called before each timing, such as to put the arm's weights in place.
        encode: Repeat index to the text conditioning.
        loop: Conditioning to latents, the denoising steps alone.
        decode: Latents to images.
    """

    prepare: Callable[[], None]
    encode: Callable[[int], Any]
    loop: Callable[[Any], Any]
    decode: Callable[[Any], Any]


@dataclass(frozen=True)
class Latency:
    """Medians over the repeats, in ms for one batch: the denoising loop alone, and end to end."""

    loop_ms: float
    total_ms: float


def measure(
    works: Mapping[str, Work],
    repeats: int,
    clock: Callable[[], float],
    on_repeat: Callable[[], None] = lambda: None,
) -> dict[str, Latency]:
    """Times every work `repeats` times after one untimed round, each round starting with another.

    Args:
        works: By name.
        repeats: Timed rounds, at least 1.
        clock: Seconds, after waiting for the device to finish what it was given.
        on_repeat: Called after each round.

    Raises:
        ValueError: If repeats is below 1.
    """
    if repeats < 1:
        raise ValueError(f"evaluation.latency_repeats must be at least 1, got {repeats}")
    names = list(works)
    loop_s = {name: np.empty(repeats) for name in names}
    total_s = {name: np.empty(repeats) for name in names}
    for repeat in range(-1, repeats):
        first = max(repeat, 0) % len(names)
        for name in names[first:] + names[:first]:
            work = works[name]
            work.prepare()
            start = clock()
            conditioning = work.encode(max(repeat, 0))
            encoded = clock()
            latents = work.loop(conditioning)
            denoised = clock()
            work.decode(latents)
            end = clock()
            if repeat >= 0:
                loop_s[name][repeat] = denoised - encoded
                total_s[name][repeat] = end - start
        on_repeat()
    return {name: Latency(_median_ms(loop_s[name]), _median_ms(total_s[name])) for name in names}


def _median_ms(seconds: np.ndarray) -> float:
    return 1e3 * float(np.median(seconds))
