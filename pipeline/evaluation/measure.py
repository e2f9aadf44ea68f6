"""Runs the arms over the prompts and keeps the numbers of every prompt, not the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation import frechet, metrics
from pipeline.evaluation.arms import REFERENCE, Arm
from pipeline.evaluation.samples import Images, Shard, shards

Judge = Callable[[np.ndarray, list[str]], np.ndarray]
"""Images (B, H, W, 3) and their captions to verdicts, bool (B,)."""


@dataclass(frozen=True)
class Measured:
    """One arm over N prompts, and over P prompts with several seeds each.

    Attributes:
        passed: bool (N,), the checker's verdicts; None where no checker reads the images.
        psnr: float64 (N,), dB to the teacher's image.
        ssim: float64 (N,), to the teacher's image.
        features: float64 (N, D), for `fd_scenes`.
        spread: float64 (P,), mean distance among the seeds of a prompt.
    """

    passed: np.ndarray | None
    psnr: np.ndarray
    ssim: np.ndarray
    features: np.ndarray
    spread: np.ndarray


@dataclass(frozen=True)
class Draws:
    """What every arm makes.

    Attributes:
        prompts: Shards of one image per prompt; image i starts from the noise of seed + i.
        seeds: Shards of whole prompts with `seeds_per_prompt` images each, from the seeds after those.
        seeds_per_prompt: Images per prompt for seed diversity.
    """

    prompts: list[Shard]
    seeds: list[Shard]
    seeds_per_prompt: int

    @property
    def images(self) -> int:
        """Images of one arm."""
        return sum(len(shard.prompts) for shard in (*self.prompts, *self.seeds))


def draws(prompts: Sequence[str], seed: int, batch: int, diversity_prompts: int, diversity_seeds: int) -> Draws:
    """Which prompts and seeds are drawn, `batch` at a time.

    Args:
        prompts: Held-out prompts.
        seed: Of the first image.
        batch: Images made together.
        diversity_prompts: Prompts whose seeds are compared, evenly spread over the list; all where it is shorter.
        diversity_seeds: Images per prompt for seed diversity.

    Raises:
        ValueError: If there is no prompt.
    """
    if not prompts:
        raise ValueError("evaluation.prompts must be at least 1, got 0")
    places = np.linspace(0, len(prompts) - 1, min(diversity_prompts, len(prompts))).round().astype(int)
    repeated = [prompts[i] for i in places for _ in range(diversity_seeds)]
    first = seed + len(prompts)
    whole_prompts = max(1, batch // diversity_seeds) * diversity_seeds
    return Draws(
        shards(prompts, range(seed, first), batch),
        shards(repeated, range(first, first + len(repeated)), whole_prompts),
        diversity_seeds,
    )


def measure(
    arms: Sequence[Arm],
    images: Images,
    judge: Judge | None,
    drawn: Draws,
    on_shard: Callable[[Arm, int], None] = lambda arm, images: None,
) -> dict[str, Measured]:
    """Measures every arm on the same prompts from the same noise.

    Args:
        arms: What is compared; one is the teacher.
        images: A shard's images of an arm, uint8 (B, H, W, 3).
        judge: The checker; None where none reads the images.
        drawn: Prompts and seeds.
        on_shard: Called with the arm and its number of images after each shard of each arm.

    Raises:
        ValueError: If no arm is the teacher.
    """
    reference_arm = next((arm for arm in arms if arm.name == REFERENCE), None)
    if reference_arm is None:
        raise ValueError(f"the arms must include {REFERENCE!r}, got {[arm.name for arm in arms]}")
    rows: dict[str, list[tuple[np.ndarray, ...]]] = {arm.name: [] for arm in arms}
    for shard in drawn.prompts:
        reference = images(reference_arm, shard)
        for arm in arms:
            made = reference if arm is reference_arm else images(arm, shard)
            passed = judge(made, list(shard.prompts)) if judge else np.zeros(0, dtype=bool)
            paired = metrics.psnr(made, reference), metrics.ssim(made, reference)
            rows[arm.name].append((passed, *paired, frechet.features(made)))
            on_shard(arm, len(shard.prompts))

    spreads: dict[str, list[np.ndarray]] = {arm.name: [] for arm in arms}
    for shard in drawn.seeds:
        for arm in arms:
            made = images(arm, shard)
            spreads[arm.name].append(metrics.seed_spread(made.reshape(-1, drawn.seeds_per_prompt, *made.shape[1:])))
            on_shard(arm, len(shard.prompts))

    measured = {}
    for arm in arms:
        passed, psnr, ssim, features = (np.concatenate(column) for column in zip(*rows[arm.name], strict=True))
        spread = np.concatenate(spreads[arm.name])
        measured[arm.name] = Measured(passed if judge else None, psnr, ssim, features, spread)
    return measured
