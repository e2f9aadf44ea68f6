"""COCO-10k: FID to photographs or to the teacher's images, and scores of 10,000 captions, as pi-Flow measures them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.evaluation.benchmarks import Column
from pipeline.evaluation.benchmarks.official import Distance, Item, Metric, OfficialBenchmark, Source
from pipeline.evaluation.benchmarks.records import lines, wrong

COUNT = 10_000
SEED = 0  # decides the order of COCO's images


def parse(files: Mapping[str, Path]) -> list[Item]:
    """The first 10,000 captions of one file.

    Args:
        files: Either a text file, one caption a line, or COCO's captions_val2014.json. In the JSON each image
            gives its caption with the lowest annotation id, and `SEED` decides the order of the images.

    Raises:
        ValueError: There is not exactly one file, a line is empty, or the JSON has another format.
    """
    if len(files) != 1:
        raise ValueError(f"coco must have one file of captions, got {len(files)}: {', '.join(files) or 'none'}")
    (path,) = files.values()
    return _annotated(path) if path.suffix == ".json" else _listed(path)


def _listed(path: Path) -> list[Item]:
    items = []
    for line, text in lines(path):
        caption = text.strip()
        if not caption:
            raise wrong(path, line, "be a caption", text)
        items.append(Item(id=f"{line - 1:05d}", prompt=caption))
        if len(items) == COUNT:
            break
    return items


def _annotated(path: Path) -> list[Item]:
    content = artifacts.read_json(path)
    captions: dict[int, tuple[int, str]] = {}  # by image, with the annotation's id
    for one in content.get("annotations", []) if isinstance(content, dict) else []:
        _check(path, one)
        captions[one["image_id"]] = min(captions.get(one["image_id"], (one["id"] + 1, "")), (one["id"], one["caption"]))
    if not captions:
        raise ValueError(f"{path} must have annotations, got {list(content)[:5]}")
    # a hash, not a generator: no version of a library can change the order
    order = sorted(captions, key=lambda image: hashlib.sha256(f"{SEED} {image}".encode()).digest())
    return [Item(id=f"{i:012d}", prompt=captions[i][1].strip(), extra={"image": i}) for i in order[:COUNT]]


def _check(path: Path, annotation: Any) -> None:
    for key, kind in (("image_id", int), ("id", int), ("caption", str)):
        if not isinstance(annotation, dict) or not isinstance(annotation.get(key), kind):
            raise ValueError(f"{path} must have {key} as {kind.__name__} in each annotation, got {annotation!r:.100}")


def _distances(reference: str, of: str, suffix: str) -> tuple[Distance, ...]:
    """FID, patch FID and KID to one reference."""
    return tuple(
        Distance(
            column=Column(f"{key}{suffix}", f"{title} to {of}", digits, better="lower", note=note),
            scorer=scorer,
            kind=kind,
            reference=reference,
        )
        for key, title, digits, scorer, kind, note in (
            ("fid", "FID", 2, "inception", "fid", NOTE),
            ("patch_fid", "patch FID", 2, "inception_patch", "fid", ""),
            ("kid", "KID", 5, "inception", "kid", ""),
        )
    )


NOTE = (
    "FID compares features of all images at 299 pixels, patch FID those of the middle 299 pixels; other programs resize"
    " otherwise and differ in the last digits."
)
COCO = OfficialBenchmark(
    name="coco",
    title="COCO-10k",
    about="How near the images of 10,000 captions are to photographs, and how well they fit the captions.",
    source=Source(
        site="user",
        files=(),
        licence="COCO's captions CC BY 4.0, its images under Flickr's terms",
    ),
    parse=parse,
    counts={"": COUNT},
    seeds=1,
    metrics=(
        Metric(
            column=Column("clip", "CLIP score", 2, better="higher", note="The CLIP score is 100 x the cosine."),
            scorer="clip",
            fields=("clip",),
        ),
        Metric(
            column=Column("vqascore_clip-flant5-xxl", "VQAScore, CLIP-FlanT5", 3, better="higher"),
            scorer="vqascore_clip-flant5-xxl",
            fields=("vqascore",),
        ),
        Metric(
            column=Column("vqascore_qwen2.5-vl-7b", "VQAScore, Qwen2.5-VL", 3, better="higher"),
            scorer="vqascore_qwen2.5-vl-7b",
            fields=("vqascore",),
        ),
        Metric(column=Column("hps", "HPSv2.1", 2, better="higher"), scorer="hpsv2.1", fields=("hps",)),
    ),
    distances=(*_distances("real", "photographs", ""), *_distances("teacher", "the teacher", "_teacher")),
)
