"""A benchmark of the machinery itself: eight captions of the shipped world, and two scorers that need no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.evaluation.benchmarks import Column, layouts
from pipeline.evaluation.benchmarks.official import (
    SHIPPED,
    Call,
    External,
    ImageOf,
    Item,
    Metric,
    OfficialBenchmark,
    Source,
    Value,
)
from pipeline.evaluation.benchmarks.records import Values, csv_rows, number, wrong
from pipeline.scenes import captions

SCORER = SHIPPED / "selftest" / "scorer.py"
SEEDS = 2


def parse(files: Mapping[str, Path]) -> list[Item]:
    """Captions that the teacher was not trained on, by task; no file is read."""
    texts = captions.sample("evaluation", 8, seed=0)
    return [Item(id=str(i), prompt=text, category=captions.task(text)) for i, text in enumerate(texts)]


def layout(root: Path, items: Sequence[Item], images: Mapping[str, ImageOf], seeds: int) -> None:
    """<id>.png, the two images side by side."""
    image_of = layouts.only(images)
    for item in items:
        layouts.grid([image_of(item, seed) for seed in range(seeds)], root / f"{item.id}.png", columns=SEEDS)


def commands(call: Call) -> list[list[str]]:
    """One call of the script; the options `crash_after` and `drop` make it fail, for tests."""
    score = [call.python, str(SCORER), str(call.images), str(call.out / "red.csv")]
    for option in ("crash_after", "drop"):
        if option in call.options:
            score += [f"--{option.replace('_', '-')}", call.options[option]]
    return [score]


def read(out: Path, items: Sequence[Item], arm: str) -> list[Value]:
    """`red` of each image in red.csv. Raises ValueError for a line that is wrong."""
    path = out / "red.csv"
    values = Values(path, items)
    for line, row in csv_rows(path, ("file", "image", "red")):
        if not row["image"].isdecimal():
            raise wrong(path, line, "have the number of an image", row["image"])
        name, red = row["file"].removesuffix(".png"), number(path, line, "red", row["red"])
        values.add(line, name, int(row["image"]), red=red)
    return values.found


SELFTEST = OfficialBenchmark(
    name="selftest",
    title="Self-test",
    about="Nothing: it runs every part of a benchmark on eight prompts of the shipped world.",
    source=Source(site="local", files=(), licence="Apache-2.0, as this project"),
    parse=parse,
    counts={
        "single_object": 1,
        "two_objects": 1,
        "counting": 1,
        "colors": 1,
        "position": 2,
        "color_attribution": 2,
    },
    seeds=SEEDS,
    metrics=(
        Metric(
            column=Column("selftest_brightness", "brightness", 3, better="higher"),
            scorer="brightness",
            fields=("brightness",),
        ),
        Metric(
            column=Column("selftest_red", "share of red", 3, better="higher"),
            scorer="selftest_red",
            fields=("red",),
        ),
    ),
    external=(External(name="selftest_red", version="1", layout=layout, commands=commands, parse=read),),
)
