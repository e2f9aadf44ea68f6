"""artifacts/images: the images of every arm, and an index of their prompts, seeds and origin.

index.json               the arms, the prompts and seeds of each shard, digests of what made the images
<arm>/prompts-00000.zip  one image per prompt
<arm>/seeds-00000.zip    several images per prompt, for seed diversity
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pipeline import artifacts, image_archives
from pipeline.evaluation.arms import Arm, ShownArm
from pipeline.evaluation.samples import Draws, Shard
from pipeline.flow.schedule import Schedule

INDEX = "index.json"
VERSION = 2


@dataclass(frozen=True)
class Origin:
    """What made the images.

    Attributes:
        teacher_digest: Digest of the transformer and of the LoRAs fused into it.
        bundle_digest: Digest of the pair.
        adapter_digests: Digest of each adapter's file.
        path: How the student's latents move, one of `stepping.PATHS`.
        versions: Versions of the packages.
        schedule: Base levels to sigmas, at the resolution of the images.
        teacher_steps: Steps of the teacher.
        phases: Teacher steps at which the student's steps start, by phase, in order.
    """

    teacher_digest: str
    bundle_digest: str
    adapter_digests: Mapping[str, str]
    path: str
    versions: Mapping[str, str]
    schedule: Schedule
    teacher_steps: int
    phases: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class ImageSet:
    """The images of one evaluation on disk.

    Attributes:
        folder: Where the images lie.
        arms: The arms, in the order of the tables.
        draws: The prompts and seeds of every arm.
        height: Pixels.
        width: Pixels.
        origin: What made the images.
    """

    folder: Path
    arms: list[ShownArm]
    draws: Draws
    height: int
    width: int
    origin: Origin

    @property
    def prompts(self) -> list[str]:
        """The held-out prompts."""
        return [prompt for shard in self.draws.prompts for prompt in shard.prompts]

    @property
    def seed(self) -> int:
        """The seed of the first prompt's image; the seeds of the others count on from it."""
        return self.draws.prompts[0].seeds[0]

    def images(self, arm: Arm | ShownArm, shard: Shard) -> np.ndarray:
        """A shard's images of an arm, uint8 (B, H, W, 3).

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged, or holds other images than the index says.
        """
        file = self.folder / arm.name / self.draws.files[shard]
        found = image_archives.unpack(file)
        wanted = (len(shard.prompts), self.height, self.width, 3)
        if found.shape != wanted:
            raise ValueError(f"{file} must hold images of shape {wanted}, as {INDEX} says, got {found.shape}")
        return found

    @classmethod
    def load(cls, folder: Path) -> ImageSet:
        """Reads the index of a folder of images.

        Raises:
            FileNotFoundError: There is no index.
            ValueError: The index is incomplete, or of another version.
        """
        file = folder / INDEX
        content = artifacts.read_json(file)
        try:
            if content["version"] != VERSION:
                raise ValueError(f"version must be {VERSION}, got {content['version']}")
            shown = [ShownArm(**arm) for arm in content["arms"]]
            shards = {kind: [_shard(entry) for entry in content[kind]] for kind in ("prompts", "seeds")}
            draws = Draws(**shards, seeds_per_prompt=content["seeds_per_prompt"])
            origin = Origin(**content["origin"] | {"schedule": Schedule(**content["origin"]["schedule"])})
            return cls(folder, shown, draws, content["height"], content["width"], origin)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is not a list of images ({error}): run `dvc repro` to make them again") from error


def index(arms: Sequence[Arm], draws: Draws, height: int, width: int, origin: Origin) -> dict:
    """The content of index.json."""
    return {
        "version": VERSION,
        "arms": [asdict(arm.shown) for arm in arms],
        "height": height,
        "width": width,
        "seeds_per_prompt": draws.seeds_per_prompt,
        "prompts": [asdict(shard) for shard in draws.prompts],
        "seeds": [asdict(shard) for shard in draws.seeds],
        "origin": asdict(origin),
    }


def _shard(entry: Mapping) -> Shard:
    return Shard(tuple(entry["prompts"]), tuple(entry["seeds"]))
