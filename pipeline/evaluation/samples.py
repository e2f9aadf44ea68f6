"""The prompts and seeds of every arm, cut into shards, and the cache of images on disk for all evaluations."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import artifacts, image_archives, leftovers
from pipeline.evaluation.arms import Arm, ShownArm


@dataclass(frozen=True)
class Shard:
    """Prompts and seeds of images made together; row i is prompts[i] from the noise of seeds[i]."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]


def shards(prompts: Sequence[str], seeds: Sequence[int], size: int) -> list[Shard]:
    """Cuts prompts and their seeds into shards of `size`; the last shard holds the rest."""
    rows = list(zip(prompts, seeds, strict=True))
    return [Shard(*map(tuple, zip(*rows[i : i + size], strict=True))) for i in range(0, len(rows), size)]


@dataclass(frozen=True)
class Draws:
    """The prompts and seeds of every arm.

    Attributes:
        prompts: Shards of one image per prompt; image i starts from the noise of seed + i.
        seeds: Shards of whole prompts with `seeds_per_prompt` images each; their seeds follow those of `prompts`.
        seeds_per_prompt: Images per prompt for seed diversity.
    """

    prompts: list[Shard]
    seeds: list[Shard]
    seeds_per_prompt: int

    @property
    def images(self) -> int:
        """Images of one arm."""
        return sum(len(shard.prompts) for shard in (*self.prompts, *self.seeds))

    @property
    def files(self) -> dict[Shard, str]:
        """The name of each shard's file, the same for every arm."""
        kinds = {"prompts": self.prompts, "seeds": self.seeds}
        return {shard: f"{kind}-{i:05d}.zip" for kind, those in kinds.items() for i, shard in enumerate(those)}


def draws(prompts: Sequence[str], seed: int, batch: int, diversity_prompts: int, diversity_seeds: int) -> Draws:
    """Which prompts and seeds are drawn, `batch` at a time.

    Args:
        prompts: Held-out prompts.
        seed: Seed of the first image.
        batch: Images made together.
        diversity_prompts: How many prompts get several seeds, evenly spread over the list; all if the list is shorter.
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


Images = Callable[[ShownArm, Shard], np.ndarray]
"""A shard's images of an arm, uint8 (B, H, W, 3)."""
Making = Callable[[Arm, Shard], np.ndarray]
"""Makes a shard's images of an arm."""


def pick(images: Images, arm: ShownArm, among: Sequence[Shard], indices: Sequence[int]) -> list[np.ndarray]:
    """The images of single prompts, uint8 (H, W, 3) each; `indices` count the prompts of `among` over all shards."""
    starts = np.cumsum([0, *(len(shard.prompts) for shard in among)])
    places = [int(np.searchsorted(starts, index, side="right")) - 1 for index in indices]
    found: dict[int, np.ndarray] = {}
    for place in sorted(set(places)):
        made = images(arm, among[place])
        found |= {i: made[i - starts[place]].copy() for i, p in zip(indices, places, strict=True) if p == place}
    return [found[index] for index in indices]


def depends_on(arm: Arm, origin: Mapping, adapter_digests: Mapping[str, str]) -> dict:
    """What an image of an arm depends on besides its prompts and seeds, in JSON's types.

    Args:
        arm: Levels, adapters and guidance.
        origin: What images of the bare backbone depend on besides the arm.
        adapter_digests: Digest of each adapter's weights.
    """
    return {
        "origin": origin,
        "sigmas": arm.plan.sigmas.tolist(),
        "d_sigmas": arm.plan.d_sigmas,
        "solver": arm.plan.solver,
        "guidance": arm.plan.guidance,
        "adapters": [adapter_digests[name] if name else None for name in arm.plan.adapters],
        "true_cfg_scale": arm.true_cfg_scale,
        "guidance_scale": arm.guidance_scale,
    }


class ImageCache:
    """A cache of images, one file per arm and shard, named by a digest of all that its content depends on.

    A file is written whole, so a killed generation continues after its last finished shard. An evaluation reuses the
    shards that it shares with earlier ones: all arms of the bare backbone, and arms whose adapters did not change.
    """

    def __init__(
        self, make: Making, origin: Mapping, adapter_digests: Mapping[str, str], folder: Path | None = None
    ) -> None:
        """
        Args:
            make: Makes a shard's images.
            origin: What images of the bare backbone depend on, besides arm and shard, in JSON's types.
            adapter_digests: Digest of each adapter's weights.
            folder: Where the files lie; None = under `$DVC_ROOT/.glance/cache`.

        `used` collects the files that were requested.
        """
        self.make = make
        self.origin = origin
        self.adapter_digests = adapter_digests
        self.folder = folder or leftovers.folder("cache") / "evaluation" / artifacts.digest_of(origin)
        self.used: set[Path] = set()

    def path(self, arm: Arm, shard: Shard) -> Path:
        """Where a shard's images are, or will be."""
        content = depends_on(arm, self.origin, self.adapter_digests)
        content |= {"prompts": shard.prompts, "seeds": shard.seeds}
        return self.folder / f"{artifacts.digest_of(content)}.zip"

    def file(self, arm: Arm, shard: Shard) -> Path:
        """The file of a shard's images; a missing or damaged file is made first."""
        path = self.path(arm, shard)
        self.used.add(path)
        if image_archives.intact(path, shard.seeds):
            os.utime(path)  # the cache deletes the least recently used files
        else:
            image_archives.pack(path, self.make(arm, shard), shard.seeds)
        return path
