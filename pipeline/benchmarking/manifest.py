"""The record of the images that an arm made for a benchmark; scorers and the table read this record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pipeline import artifacts
from pipeline.benchmarking import places, prepare
from pipeline.evaluation.benchmarks.official import Item, OfficialBenchmark

VERSION = 1


def image_name(index: int, number: int) -> str:
    """The file name of an image: the prompt's index in the whole benchmark, and the image's number in its prompt."""
    return f"{index:05d}_{number}.png"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The images of one arm.

    Attributes:
        benchmark: Name of the benchmark.
        arm: Name of the arm.
        title: The arm in a few words.
        steps: Euler steps per image; None for images that were made elsewhere.
        nfe: Forwards per image; None for images that were made elsewhere.
        prompts: Digest of the benchmark's prompts.
        seed: Seed of the first prompt's first image; None for images that were made elsewhere.
        seeds: Images per prompt.
        limit: How many prompts of each category; None = all.
        height: Pixels.
        width: Pixels.
        key: Digest of all that the images depend on.
        folder: Where the images lie, relative to the project or absolute.
        images: The digest of each image's file, by name.
        teacher: Digest of the teacher; "" for images that were made elsewhere.
        bundle: Digest of the pair that the arm belongs to; "" for images that were made elsewhere.
    """

    benchmark: str
    arm: str
    title: str
    steps: int | None
    nfe: int | None
    prompts: str
    seed: int | None
    seeds: int
    limit: int | None
    height: int
    width: int
    key: str
    folder: str
    images: Mapping[str, str]
    teacher: str = ""
    bundle: str = ""

    @property
    def digest(self) -> str:
        """Digest of the images' bytes and of their prompts, whatever folder holds the images."""
        return artifacts.digest_of([self.benchmark, self.prompts, self.limit, self.seeds, self.images])

    def path(self, index: int, number: int) -> Path:
        """The file of an image."""
        return Path(self.folder) / image_name(index, number)

    def write(self) -> Path:
        """Writes the record to its place, whole."""
        file = places.manifest(self.benchmark, self.arm)
        artifacts.write_json(file, {"version": VERSION, **asdict(self)})
        return file


def load(benchmark: str, arm: str) -> Manifest:
    """The record of an arm.

    Raises:
        ValueError: The arm has no images yet, or the record is damaged or of another version.
    """
    file = places.manifest(benchmark, arm)
    if not file.is_file():
        raise ValueError(f"{arm} has no images for {benchmark}: run {_again(benchmark, arm)}")
    content = artifacts.read_json(file)
    try:
        if content["version"] != VERSION:
            raise ValueError(f"version must be {VERSION}, got {content['version']}")
        return Manifest(**{f.name: content[f.name] for f in fields(Manifest)})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is not the record of an arm ({error}): generate the arm anew") from error


def arms(benchmark: str) -> list[str]:
    """The arms that have a record, the teacher first."""
    found = sorted(path.stem for path in (places.MANIFESTS / benchmark).glob("[!.]*.json"))
    return sorted(found, key=lambda name: name != "teacher")


def chosen(benchmark: OfficialBenchmark, found: Manifest) -> list[tuple[int, Item]]:
    """The prompts of a record, each with its index in the whole benchmark.

    Raises:
        ValueError: The benchmark's prompts have changed since the images were made.
    """
    if prepare.digest(benchmark.name) != found.prompts:
        raise ValueError(
            f"the images of {found.arm} are of other prompts than benchmarks/data/{benchmark.name}: generate them anew"
        )
    every = prepare.items(benchmark.name)
    places_of = {item.id: index for index, item in enumerate(every)}
    return [(places_of[item.id], item) for item in benchmark.first(every, found.limit)]


def verified(found: Manifest, indices: Sequence[int]) -> None:
    """Compares the images of some prompts with their digests.

    Raises:
        ValueError: An image is missing or damaged, or has changed since the record was written.
    """
    again = _again(found.benchmark, found.arm)
    for index in indices:
        for number in range(found.seeds):
            name, file = image_name(index, number), found.path(index, number)
            if not file.is_file():
                raise ValueError(f"{file} is missing: run {again}")
            if artifacts.file_digest(file) != found.images.get(name):
                raise ValueError(f"{file} is not the image that {found.arm} made: remove it and run {again}")


def _again(benchmark: str, arm: str) -> str:
    return f"`glance benchmark generate {benchmark} --arms {arm}`"
