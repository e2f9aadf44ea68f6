"""How long an image takes. All works are timed in one run and take turns, so that a slow minute affects all alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Work:
    """A way from prompts to images, in the three parts that are timed.

    Attributes:
        prepare: Called once in each round and not timed, for example to activate the arm's adapters.
        encode: Maps the index of the repeat to the text conditioning.
        loop: Maps the conditioning to latents: the denoising steps alone.
        decode: Maps latents to images.
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
    """Times every work `repeats` times, each time right after an untimed run of the same work.

    The untimed run fills the caches, so the times are those of an image in a series. Without it a switch of arms would
    start with cold caches, which costs an arm of few forwards relatively more.

    Args:
        works: By name.
        repeats: Rounds, at least 1; each starts with another work.
        clock: Gives the seconds, after the device has finished its queued work.
        on_repeat: Called after each round.

    Raises:
        ValueError: If repeats is below 1.
    """
    if repeats < 1:
        raise ValueError(f"evaluation.latency_repeats must be at least 1, got {repeats}")
    names = list(works)
    loop_s = {name: np.empty(repeats) for name in names}
    total_s = {name: np.empty(repeats) for name in names}
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            works[name].prepare()
            for _ in ("untimed", "timed"):
                loop_s[name][repeat], total_s[name][repeat] = _run(works[name], repeat, clock)
        on_repeat()
    return {name: Latency(_median_ms(loop_s[name]), _median_ms(total_s[name])) for name in names}


def _run(work: Work, repeat: int, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds of the loop, and from prompts to images."""
    start = clock()
    conditioning = work.encode(repeat)
    encoded = clock()
    latents = work.loop(conditioning)
    denoised = clock()
    work.decode(latents)
    return denoised - encoded, clock() - start


def _median_ms(seconds: np.ndarray) -> float:
    return 1e3 * float(np.median(seconds))
