"""HPSv2: the human preference score of prompts in four styles (Wu et al., arXiv 2306.09341)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline import artifacts
from pipeline.evaluation.benchmarks import Column, layouts
from pipeline.evaluation.benchmarks.official import (
    Call,
    External,
    ImageOf,
    Item,
    Metric,
    OfficialBenchmark,
    Source,
    SourceFile,
    Value,
)
from pipeline.evaluation.benchmarks.published import qwen_image

STYLES = ("anime", "concept-art", "paintings", "photo")
JPEG = {"quality": 95, "subsampling": 0}  # the package does not document its JPEG settings
EVALUATE = "import sys, hpsv2; hpsv2.evaluate(sys.argv[1], hps_version='v2.1')"  # v2.0 is the default elsewhere in it
PRINT = 'exec "$0" -c "$1" "$2" > "$3"'


def parse(files: Mapping[str, Path]) -> list[Item]:
    """The prompts of each style, in its file's order. Raises ValueError where a file is no list of texts."""
    items = []
    for style in STYLES:
        path = files[f"{style}.json"]
        prompts = artifacts.read_json(path)
        if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"{path} must be a list of texts, got {type(prompts).__name__}")
        items += [Item(id=f"{style}_{i:05d}", prompt=prompt, category=style) for i, prompt in enumerate(prompts)]
    return items


def layout(root: Path, items: Sequence[Item], images: Mapping[str, ImageOf], seeds: int) -> None:
    """<style>/00000.jpg; the package takes every entry of the root for a style."""
    image_of = layouts.only(images)
    for item in items:
        layouts.convert(image_of(item, 0), root / item.category / f"{item.id.rpartition('_')[2]}.jpg", **JPEG)


def commands(call: Call) -> list[list[str]]:
    """Writes what the package prints to hpsv2.txt."""
    return [["sh", "-c", PRINT, call.python, EVALUATE, str(call.images), str(call.out / "hpsv2.txt")]]


def read(out: Path, items: Sequence[Item], arm: str) -> list[Value]:
    """No values: the package prints only the means of the styles, to compare with those of the in-process scorer."""
    return []


def _of_style(style: str) -> Metric:
    column = Column(f"hpsv2_{style.replace('-', '_')}", f"HPSv2.1, {style.replace('-', ' ')}", 2, better="higher")
    return Metric(column=column, scorer="hpsv2.1", fields=("hps",), categories=(style,))


HPSV2 = OfficialBenchmark(
    name="hpsv2",
    title="HPSv2",
    about="How people would rate the image for its prompt, in four styles.",
    source=Source(
        site="hub-dataset",
        repository="ymhao/HPDv2",
        revision="bb0f2563e451e11c3f376b2ba93615db00e042e1",
        files=tuple(SourceFile(path=f"benchmark/{style}.json") for style in STYLES),
        licence="Apache-2.0 by the data set's card",
    ),
    parse=parse,
    counts=dict.fromkeys(STYLES, 800),
    seeds=1,
    metrics=(
        Metric(
            column=Column(
                "hpsv2",
                "HPSv2.1",
                2,
                better="higher",
                note="HPSv2.1 is 100 x the cosine of image and prompt in a CLIP model tuned on human choices.",
            ),
            scorer="hpsv2.1",
            fields=("hps",),
        ),
        *(_of_style(style) for style in STYLES),
    ),
    external=(
        External(
            name="hpsv2_package",
            version="866735ecaae999fa714bd9edfa05aa2672669ee3",
            layout=layout,
            commands=commands,
            parse=read,
            note="The package gives no value per image, so the table has no number from it. The package reads JPEG"
            " files and the in-process scorer the images themselves: the last digits can differ.",
        ),
    ),
    published=(qwen_image("hpsv2", 30.83),),
)
