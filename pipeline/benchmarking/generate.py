"""Makes the single images of an arm. Each image is written whole, so a stopped run continues where it stopped."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline import artifacts, image_files
from pipeline.benchmarking import places, prepare
from pipeline.benchmarking.arms import Given, Made
from pipeline.benchmarking.manifest import Manifest, image_name
from pipeline.benchmarking.settings import Settings
from pipeline.evaluation.benchmarks.official import Item, OfficialBenchmark
from pipeline.evaluation.samples import Shard, depends_on
from pipeline.progress import Progress

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, kw_only=True)
class Part:
    """Part `number` (from 1) of `of` equal parts of the work; each part may run on another machine."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Part:
        """The part that "i/n" names. Raises ValueError unless 1 <= i <= n."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"--shard must be i/n with i from 1 to n, got {text}")
        return cls(number=int(found[1]), of=int(found[2]))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image to make: index and text of its prompt, its number within the prompt, its seed."""

    index: int
    number: int
    prompt: str
    seed: int

    @property
    def name(self) -> str:
        """Name of the image's file."""
        return image_name(self.index, self.number)


def generate_all(
    benchmark: OfficialBenchmark,
    arms: Sequence[Made | Given],
    settings: Settings,
    progress: Progress,
    part: Part = Part(),
) -> Iterator[Manifest | None]:
    """Makes the missing images of some arms, and yields what `generate` returns for each of them.

    Arms that share a model follow each other; the model is released before an arm with another model begins.
    """
    for arm, following in zip(arms, [*arms[1:], None], strict=True):
        yield generate(benchmark, arm, settings, progress, part)
        if isinstance(arm, Made) and not (isinstance(following, Made) and following.inputs is arm.inputs):
            arm.inputs.release()


def generate(
    benchmark: OfficialBenchmark, arm: Made | Given, settings: Settings, progress: Progress, part: Part = Part()
) -> Manifest | None:
    """Makes the missing images of an arm, and writes their record once all images are there.

    Args:
        benchmark: The benchmark with the prompts.
        arm: The arm that makes the images.
        settings: Seed, limit and batch.
        progress: Shows the progress.
        part: Which part of the batches is made; the part that finishes last writes the record.

    Returns:
        The record; None while images of other parts are missing.

    Raises:
        ValueError: The prompts are not prepared, or a folder of finished images lacks one.
    """
    every = prepare.items(benchmark.name)
    wanted = {item.id for item in benchmark.first(every, settings.limit)}
    chosen = {index for index, item in enumerate(every) if item.id in wanted}
    if isinstance(arm, Given):
        return _take(benchmark, arm, settings, sorted(chosen), progress)
    content = depends_on(arm.arm, arm.inputs.origin, arm.inputs.adapter_digests)
    content |= {"seed": settings.seed, "seeds": benchmark.seeds, "batch": settings.batch}
    key = artifacts.digest_of([content, prepare.digest(benchmark.name)])
    folder = places.images(benchmark.name, arm.name, key)
    batches = list(_batches(every, benchmark.seeds, settings))
    own = [rows for place, rows in enumerate(batches) if place % part.of == part.number - 1]
    total = sum(row.index in chosen for rows in own for row in rows)
    with progress(total=total, what=f"{benchmark.name}: {arm.name}", unit="image") as bar:
        for rows in own:
            asked = [row for row in rows if row.index in chosen]
            missing = {row for row in asked if not _finished(folder / row.name, row, key)}
            if missing:
                shard = Shard(tuple(row.prompt for row in rows), tuple(row.seed for row in rows))
                with _without_warnings():
                    made = arm.inputs.sampler.images(arm.arm, shard)
                for row, image in zip(rows, made, strict=True):
                    if row in missing:
                        image_files.save(image, folder / row.name, _texts(row, key))
            bar.update(len(asked))
    names = [image_name(index, number) for index in sorted(chosen) for number in range(benchmark.seeds)]
    if part.of > 1 and not all((folder / name).is_file() for name in names):
        return None
    teacher = arm.inputs.params.teacher
    found = Manifest(
        benchmark=benchmark.name,
        arm=arm.name,
        title=arm.arm.title,
        steps=arm.arm.steps,
        nfe=arm.arm.nfe,
        prompts=prepare.digest(benchmark.name),
        seed=settings.seed,
        seeds=benchmark.seeds,
        limit=settings.limit,
        height=teacher.height,
        width=teacher.width,
        key=key,
        folder=_shown(folder),
        images={name: artifacts.file_digest(folder / name) for name in names},
        teacher=arm.inputs.teacher_digest,
        bundle=arm.inputs.bundle_digest,
    )
    found.write()
    return found


def _batches(every: Sequence[Item], seeds: int, settings: Settings) -> Iterator[list[Row]]:
    """All images of the benchmark in batches; a batch holds whole prompts if the images of one prompt fit into it.

    The limit does not change the batches. An image's rounding depends on its batch, so a subset has the same images as
    the whole benchmark.
    """
    rows = [
        Row(index=index, number=number, prompt=item.prompt, seed=settings.seed + seeds * index + number)
        for index, item in enumerate(every)
        for number in range(seeds)
    ]
    size = max(settings.batch // seeds * seeds, min(settings.batch, seeds))
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keeps diffusers from printing the end of each long prompt, of which FLUX.1's CLIP reads the first 77 tokens."""
    import diffusers.utils.logging as log

    before = log.get_verbosity()
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(before)


def _texts(row: Row, key: str) -> dict[str, str]:
    return {"glance": json.dumps({"prompt": row.prompt, "seed": row.seed, "key": key})}


def _finished(file: Path, row: Row, key: str) -> bool:
    """Whether a file is a whole image of the same prompt, seed and key."""
    return image_files.texts(file).get("glance") == _texts(row, key)["glance"]


def _take(
    benchmark: OfficialBenchmark, arm: Given, settings: Settings, chosen: Sequence[int], progress: Progress
) -> Manifest:
    """The record of images that were made elsewhere; each is stored as PNG beside the images made here."""
    files = {}
    for index in chosen:
        for number in range(benchmark.seeds):
            files[image_name(index, number)] = _found(benchmark, arm, index, number)
    key = artifacts.digest_of({name: artifacts.file_digest(file) for name, file in files.items()})
    folder, sizes = places.images(benchmark.name, arm.name, key), {}
    with progress(total=len(files), what=f"{benchmark.name}: {arm.name}", unit="image") as bar:
        for name, file in files.items():
            try:
                with Image.open(file) as opened:
                    image = np.asarray(opened.convert("RGB"))
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise ValueError(f"{file} must be a whole image, and cannot be read ({error})") from error
            sizes[image.shape[:2]] = file
            if len(sizes) > 1:
                shown = " and ".join(f"{width} x {height} ({at})" for (height, width), at in sizes.items())
                raise ValueError(f"{arm.key} must hold images of one size, got {shown}")
            image_files.save(image, folder / name)
            bar.update()
    height, width = next(iter(sizes))
    found = Manifest(
        benchmark=benchmark.name,
        arm=arm.name,
        title=arm.name,
        steps=None,
        nfe=None,
        prompts=prepare.digest(benchmark.name),
        seed=None,
        seeds=benchmark.seeds,
        limit=settings.limit,
        height=height,
        width=width,
        key=key,
        folder=_shown(folder),
        images={name: artifacts.file_digest(folder / name) for name in files},
    )
    found.write()
    return found


def _found(benchmark: OfficialBenchmark, arm: Given, index: int, number: int) -> Path:
    stem = Path(image_name(index, number)).stem
    for suffix in SUFFIXES:
        if (file := arm.folder / f"{stem}{suffix}").is_file():
            return file
    raise ValueError(
        f"{arm.key} must hold an image {stem}.png for each prompt of {benchmark.name}"
        f" ({benchmark.seeds} each), got {arm.folder} without it"
    )


def _shown(folder: Path) -> str:
    """A folder's path for the record: relative if the folder lies in the project, so that the project can move."""
    here = Path.cwd().resolve()
    return folder.relative_to(here).as_posix() if folder.is_relative_to(here) else folder.as_posix()
