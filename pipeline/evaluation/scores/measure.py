"""Measures the images of every arm, prompt by prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.arms import ShownArm
from pipeline.evaluation.recipes import REFERENCE
from pipeline.evaluation.samples import Draws, Images
from pipeline.evaluation.scores import frechet, metrics
from pipeline.evaluation.scores.appearance import Appearance, appearance, concat

Judge = Callable[[np.ndarray, list[str]], np.ndarray]
"""Maps images (B, H, W, 3) and their captions to verdicts, bool (B,)."""


@dataclass(frozen=True)
class Measured:
    """One arm over N prompts, and over P prompts with several seeds each.

    Attributes:
        passed: bool (N,), the checker's verdicts; None where no checker reads the images.
        psnr: float64 (N,), dB to the teacher's image.
        ssim: float64 (N,), to the teacher's image.
        features: float64 (N, D), for `fd_scenes`.
        spread: float64 (P,), mean distance among the seeds of a prompt.
        appearance: Colour and detail of the N images.
    """

    passed: np.ndarray | None
    psnr: np.ndarray
    ssim: np.ndarray
    features: np.ndarray
    spread: np.ndarray
    appearance: Appearance


def measure(
    arms: Sequence[ShownArm],
    images: Images,
    judge: Judge | None,
    drawn: Draws,
    on_shard: Callable[[int], None] = lambda images: None,
) -> dict[str, Measured]:
    """Measures every arm on the same prompts from the same noise.

    Args:
        arms: The compared arms; one is the teacher.
        images: A shard's images of an arm, uint8 (B, H, W, 3).
        judge: The checker; None if no checker reads the images.
        drawn: Prompts and seeds.
        on_shard: Called with the number of images after each shard of each arm.

    Raises:
        ValueError: If no arm is the teacher.
    """
    reference_arm = next((arm for arm in arms if arm.name == REFERENCE), None)
    if reference_arm is None:
        raise ValueError(f"the arms must include {REFERENCE!r}, got {[arm.name for arm in arms]}")
    rows: dict[str, list[tuple[np.ndarray, ...]]] = {arm.name: [] for arm in arms}
    looks: dict[str, list[Appearance]] = {arm.name: [] for arm in arms}
    for shard in drawn.prompts:
        reference = images(reference_arm, shard)
        for arm in arms:
            made = reference if arm is reference_arm else images(arm, shard)
            passed = judge(made, list(shard.prompts)) if judge else np.zeros(0, dtype=bool)
            paired = metrics.psnr(made, reference), metrics.ssim(made, reference)
            rows[arm.name].append((passed, *paired, frechet.features(made)))
            looks[arm.name].append(appearance(made))
            on_shard(len(shard.prompts))

    spreads: dict[str, list[np.ndarray]] = {arm.name: [] for arm in arms}
    for shard in drawn.seeds:
        for arm in arms:
            made = images(arm, shard)
            spreads[arm.name].append(metrics.seed_spread(made.reshape(-1, drawn.seeds_per_prompt, *made.shape[1:])))
            on_shard(len(shard.prompts))

    measured = {}
    for arm in arms:
        passed, psnr, ssim, features = (np.concatenate(column) for column in zip(*rows[arm.name], strict=True))
        spread = np.concatenate(spreads[arm.name])
        look = concat(looks[arm.name])
        measured[arm.name] = Measured(passed if judge else None, psnr, ssim, features, spread, look)
    return measured
