"""The scorers' values of an arm's images on disk, with the identity of the scorer and the digest of the images."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from pipeline import artifacts
from pipeline.benchmarking import places
from pipeline.benchmarking.manifest import Manifest
from pipeline.evaluation.benchmarks.official import Item, OfficialBenchmark, Value


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Identifies a scorer; values of different identities are not compared.

    Attributes:
        scorer: Name of the scorer.
        version: Version of our code for the scorer, or the commit of the official code.
        weights: The digest of each file of weights, by name.
        packages: The versions of the packages that its values depend on.
    """

    scorer: str
    version: str
    weights: Mapping[str, str]
    packages: Mapping[str, str]

    @property
    def digest(self) -> str:
        """A hex digest of all attributes."""
        return artifacts.digest_of(asdict(self))


def write(found: Manifest, identity: Identity, values: Sequence[Value]) -> None:
    """Writes the values of one arm, whole."""
    content = {"scorer": asdict(identity), "images": found.digest, "values": [asdict(value) for value in values]}
    artifacts.write_json(places.scores(found.benchmark, found.arm, identity.scorer), content)


def write_features(path: Path, images: str, identity: Identity, features: np.ndarray) -> None:
    """Writes the features of images, float32 (N, D), whole; `images` is the digest of the images."""
    buffer = io.BytesIO()
    content = json.dumps({"scorer": asdict(identity), "images": images})
    np.savez_compressed(buffer, features=features, content=np.array(content))
    with artifacts.atomic_file(path) as partial:
        partial.write_bytes(buffer.getbuffer())


def read(found: Manifest, scorer: str) -> tuple[Identity, list[Value]]:
    """The values of one arm.

    Raises:
        ValueError: The values are missing, damaged, or of other images than the record's.
    """
    path = places.scores(found.benchmark, found.arm, scorer)
    if not path.is_file():
        raise ValueError(f"{scorer} has not scored {found.arm} yet: run `glance benchmark score {found.benchmark}`")
    content = artifacts.read_json(path)
    try:
        identity = Identity(**content["scorer"])
        values = [Value(**entry) for entry in content["values"]]
        images = content["images"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no values ({error}): remove it and score anew") from error
    _same_images(path, images, found)
    return identity, values


def read_features(found: Manifest, scorer: str) -> tuple[Identity, np.ndarray]:
    """The features of one arm's images, float32 (N, D). Raises ValueError as `read` does."""
    path = places.scores(found.benchmark, found.arm, scorer, features=True)
    if not path.is_file():
        raise ValueError(f"{scorer} has not scored {found.arm} yet: run `glance benchmark score {found.benchmark}`")
    images, identity, features = features_in(path)
    _same_images(path, images, found)
    return identity, features


def features_in(path: Path) -> tuple[str, Identity, np.ndarray]:
    """Reads a file of `write_features`: the digest of the images, the identity of the scorer, the features.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            content, features = json.loads(str(arrays["content"])), arrays["features"]
        return content["images"], Identity(**content["scorer"]), features
    except (KeyError, OSError, TypeError, ValueError, BadZipFile) as error:
        raise ValueError(f"{path} holds no features ({error}): remove it and score anew") from error


def _same_images(path: Path, images: str, found: Manifest) -> None:
    if images != found.digest:
        raise ValueError(
            f"{path} is of other images than {found.arm} has now: run `glance benchmark score {found.benchmark}`"
        )


def complete(
    benchmark: OfficialBenchmark, scorer: str, items: Sequence[Item], values: Sequence[Value], where: str
) -> None:
    """Checks that a scorer gave all values for its metrics: one per image, or one per prompt.

    Raises:
        ValueError: A value is missing, is there twice, or belongs to an unknown prompt. The message counts such values
            and names the first.
    """
    own = [metric for metric in benchmark.metrics if metric.scorer == scorer]
    asked = [item for item in items if any(metric.asks(item) and item.id not in metric.lost for metric in own)]
    known = {item.id for item in items}
    stranger = next((value.item for value in values if value.item not in known), None)
    if stranger is not None:
        raise ValueError(f"{where} must be of the prompts of {benchmark.name}, got a value of {stranger!r}")
    counts = Counter((value.item, value.seed) for value in values)
    twice = next((pair for pair, count in counts.items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"{where} must hold each image once, got {_named(*twice)} {counts[twice]} times")
    whole = all(value.seed is None for value in values)
    numbers: list[int | None] = [None] if whole else list(range(benchmark.seeds))
    missing = [(item.id, number) for item in asked for number in numbers if (item.id, number) not in counts]
    if missing:
        total = len(asked) * len(numbers)
        raise ValueError(
            f"{where} must hold {total} values, {len(numbers)} for each of {len(asked)} prompts, got"
            f" {total - len(missing)}: the first that is missing is {_named(*missing[0])}"
        )


def _named(item: str, number: int | None) -> str:
    return f"prompt {item}" if number is None else f"image {number} of prompt {item}"
