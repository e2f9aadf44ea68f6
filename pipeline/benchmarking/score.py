"""Runs the in-process scorers. Each is loaded once for all arms, and continues after its last finished block."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from pipeline import artifacts, leftovers
from pipeline.benchmarking import manifest, places, values
from pipeline.benchmarking.loading import Loaded
from pipeline.benchmarking.manifest import Manifest
from pipeline.benchmarking.scorers import Extractor, Lacking, Scorer, table
from pipeline.benchmarking.settings import Settings
from pipeline.evaluation.benchmarks.official import Item, OfficialBenchmark, Value
from pipeline.progress import Progress

BLOCK = 64  # images whose values are written together
PHOTOGRAPHS = (".jpg", ".jpeg", ".png", ".webp")


def score(
    benchmark: OfficialBenchmark, arms: Sequence[str], settings: Settings, device: str, progress: Progress
) -> list[str]:
    """Scores the images of some arms with every in-process scorer of a benchmark.

    Args:
        benchmark: The benchmark.
        arms: The arms, all of which have images.
        settings: Where the weights are.
        device: auto, cpu or cuda.
        progress: Shows the progress.

    Returns:
        A sentence for each scorer that lacks its weights or its packages.

    Raises:
        ValueError: A file of weights is wrong, or an image is missing or damaged.
    """
    lacking = []
    for name in benchmark.in_process:
        try:
            loaded = Loaded(table.find(name), settings.weights, device)
            for arm in arms:
                found = manifest.load(benchmark.name, arm)
                if not _scored(found, loaded):
                    _score(benchmark, found, loaded, progress)
            if benchmark.name in settings.references and _against_photographs(benchmark, name):
                _score_photographs(benchmark, settings.references[benchmark.name], loaded, progress)
        except Lacking as error:
            lacking.append(str(error))
    return lacking


def _scored(found: Manifest, loaded: Loaded) -> bool:
    """Whether an arm's values come from this scorer and the arm's current images."""
    read = values.read_features if loaded.entry.extracts else values.read
    try:
        return read(found, loaded.entry.name)[0] == loaded.identity
    except ValueError:
        return False


def _against_photographs(benchmark: OfficialBenchmark, scorer: str) -> bool:
    return any(distance.scorer == scorer and distance.reference == "real" for distance in benchmark.distances)


def _score_photographs(benchmark: OfficialBenchmark, folder: Path, loaded: Loaded, progress: Progress) -> None:
    """Writes the features of a folder of photographs, unless the features are there already."""
    if not folder.is_dir():
        raise ValueError(f"references.{benchmark.name} must be a folder of photographs, got {folder}")
    photographs = [folder / name for name in artifacts.files(folder) if Path(name).suffix.lower() in PHOTOGRAPHS]
    if len(photographs) < 2:
        raise ValueError(f"references.{benchmark.name} must hold at least 2 images, got {len(photographs)} in {folder}")
    digest = artifacts.digest_of([[file.name, file.stat().st_size] for file in photographs])
    target, size, parts = places.photographs(benchmark.name, loaded.entry.name), loaded.entry.batch, []
    if target.is_file() and values.features_in(target)[:2] == (digest, loaded.identity):
        return
    what = f"{benchmark.name}: {loaded.entry.name} of the photographs"
    with progress(total=len(photographs), what=what, unit="image") as bar:
        for first in range(0, len(photographs), size):
            images = [_open(file) for file in photographs[first : first + size]]
            parts.append(cast(Extractor, loaded.model).features(images))
            bar.update(len(images))
    values.write_features(target, digest, loaded.identity, np.concatenate(parts).astype(np.float32))


def _score(benchmark: OfficialBenchmark, found: Manifest, loaded: Loaded, progress: Progress) -> None:
    chosen = manifest.chosen(benchmark, found)
    asked = [(i, item) for i, item in chosen if loaded.entry.extracts or _asked(benchmark, loaded.entry.name, item)]
    rows = [(index, item, number) for index, item in asked for number in range(found.seeds)]
    scratch = leftovers.folder("benchmarks") / "scores" / artifacts.digest_of([found.digest, loaded.identity.digest])
    blocks: list = []
    what = f"{benchmark.name}: {loaded.entry.name} of {found.arm}"
    with progress(total=len(rows), what=what, unit="image") as bar:
        for first in range(0, len(rows), BLOCK):
            block = rows[first : first + BLOCK]
            file = scratch / f"{first:06d}.{'npy' if loaded.entry.extracts else 'json'}"
            if not file.is_file():
                manifest.verified(found, sorted({index for index, _, _ in block}))
                _write(file, _block(found, block, loaded))
            blocks.append(np.load(file, allow_pickle=False) if loaded.entry.extracts else artifacts.read_json(file))
            bar.update(len(block))
    if loaded.entry.extracts:
        file = places.scores(found.benchmark, found.arm, loaded.entry.name, features=True)
        values.write_features(file, found.digest, loaded.identity, np.concatenate(blocks))
    else:
        said = [Value(**entry) for block in blocks for entry in block]
        values.complete(benchmark, loaded.entry.name, [item for _, item in chosen], said, loaded.entry.name)
        values.write(found, loaded.identity, said)
    for file in scratch.glob("*"):
        file.unlink()
    scratch.rmdir()


def _asked(benchmark: OfficialBenchmark, scorer: str, item: Item) -> bool:
    return any(metric.scorer == scorer and metric.asks(item) for metric in benchmark.metrics)


def _block(found: Manifest, block: Sequence[tuple[int, Item, int]], loaded: Loaded) -> np.ndarray | list[dict]:
    """The scorer's results for some images: features (B, D), or the content of a value for each image."""
    parts: list[np.ndarray] = []
    said: list[dict] = []
    for first in range(0, len(block), loaded.entry.batch):
        some = block[first : first + loaded.entry.batch]
        files = [found.path(index, number) for index, _, number in some]
        images = [_open(file) for file in files]
        if loaded.entry.extracts:
            parts.append(cast(Extractor, loaded.model).features(images))
            _check_finite(loaded, files, parts[-1])
            continue
        fields = cast(Scorer, loaded.model).fields(images, [item for _, item, _ in some])
        for file, (_, item, number), own in zip(files, some, fields, strict=True):
            _check_finite(loaded, [file], np.array([[value for value in own.values() if not isinstance(value, str)]]))
            said.append({"item": item.id, "seed": number, "fields": own})
    return np.concatenate(parts).astype(np.float32) if loaded.entry.extracts else said


def _check_finite(loaded: Loaded, files: Sequence[Path], rows: np.ndarray) -> None:
    """Refuses values that are not finite, of the first image that has some."""
    for file, row in zip(files, rows, strict=True):
        if not np.isfinite(row).all():
            raise ValueError(f"{loaded.entry.name} must give finite numbers, got NaN or infinity for {file}")


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _write(file: Path, block: np.ndarray | list[dict]) -> None:
    if isinstance(block, np.ndarray):
        with artifacts.atomic_file(file) as partial, open(partial, "wb") as stream:
            np.save(stream, block)
    else:
        artifacts.write_json(file, block)
