"""Held-out prompts, and the checker that reads their images, if there is one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.scores.measure import Judge
from pipeline.scenes import captions, checker, renderer


@dataclass(frozen=True)
class Exam:
    """Held-out prompts and their checker.

    Attributes:
        prompts: Held-out prompts.
        tasks: The task of each prompt; None if no checker reads the images.
        judge: The checker, or None.
        unscored: Why there is no checker; "" if there is one.
        truth: Share of rendered scenes of these prompts that the checker passes: the highest score to expect; None
            without a checker.
    """

    prompts: list[str]
    tasks: list[str] | None
    judge: Judge | None
    unscored: str
    truth: float | None


def of(prompts: Sequence[str], seed: int, height: int, width: int) -> Exam:
    """The exam of some prompts, with the checker if it can read their images.

    Args:
        prompts: Held-out prompts.
        seed: Seed of the rendered scenes that test the checker.
        height: Pixels of the images.
        width: Pixels of the images.
    """
    prompts = list(prompts)
    unscored = _unscored(prompts, height, width)
    if unscored:
        return Exam(prompts, None, None, unscored, None)
    tasks = [captions.task(prompt) for prompt in prompts]
    return Exam(prompts, tasks, checker.passes, "", truth_rate(prompts, seed))


def truth_rate(prompts: Sequence[str], seed: int) -> float:
    """Share of prompts whose rendered scene the checker passes."""
    rng = random.Random(seed)
    scenes = np.stack([renderer.render(renderer.layout(captions.parse(prompt), rng)) for prompt in prompts])
    return float(checker.passes(scenes, list(prompts)).mean())


def _unscored(prompts: Sequence[str], height: int, width: int) -> str:
    """Why the checker cannot read the images, or ""."""
    side = renderer.SIZE
    if (height, width) != (side, side):
        return f"the checker reads scenes of {side} x {side} pixels, these have {height} x {width}"
    for prompt in prompts:
        try:
            captions.parse(prompt)
        except ValueError:
            return f"the checker reads captions of the scene grammar, unlike {prompt!r}"
    return ""
