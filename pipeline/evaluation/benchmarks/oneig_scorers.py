"""The external scorers of OneIG-Bench: their layout, commands and results.

Three of its five dimensions need models that this project does not load. The other two check the in-process scorers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from pipeline.evaluation.benchmarks import layouts
from pipeline.evaluation.benchmarks.official import Call, External, ImageOf, Item, Value
from pipeline.evaluation.benchmarks.records import Values, csv_rows, number, wrong

WEBP = {"quality": 80}  # lossy, as the official script saves its grids
TEXT = ("ed", "cr", "wac_matched", "wac_words")
KEEP = 'for kind in score prompt_score; do cp "$(ls results/"$0"_${kind}_"$1"_*.csv | tail -n 1)" "$2"; done'
LATIN = "a-zA-Z0-9àâäéèêëîïôöùûüçÀÂÄÉÈÊËÎÏÔÖÙÛÜÇ"
NOTE = (
    "The scorer needs the models named in the official README and runs on the first CUDA device. An image that is all"
    " black counts as not generated."
)


def externals(version: str, language: str, folders: Sequence[str], aligned: Sequence[str]) -> tuple[External, ...]:
    """The scorers of one edition.

    Args:
        version: The commit of the official code.
        language: "en" or "zh".
        folders: All folders of images.
        aligned: The folders with questions about their images.
    """
    mode = language.upper()

    def scorer(dimension: str, folders: Sequence[str], note: str, own: str = "") -> External:
        return External(
            name=f"oneig_{dimension}{own}",
            version=version,
            layout=partial(layout, folders=tuple(folders)),
            commands=partial(commands, dimension=dimension, mode=mode, folders=tuple(folders)),
            parse=partial(read, dimension=dimension, mode=mode, folder=folders[0] if len(folders) == 1 else ""),
            note=f"{NOTE} {note}".strip(),
            whole=True,
        )

    return (
        scorer("reasoning", ("reasoning",), "The scorer stops at the first failure of its text model, which is gated."),
        scorer("style", ("anime",), "Only the prompts with a style count."),
        scorer("diversity", folders, ""),
        scorer("alignment", aligned, "", own="_official"),
        scorer(
            "text",
            ("text",),
            "A grid that is all black gets the text of the grid before it.",
            own="_official",
        ),
    )


def layout(
    root: Path, items: Sequence[Item], images: Mapping[str, ImageOf], seeds: int, *, folders: Sequence[str]
) -> None:
    """<folder>/<arm>/000.webp, a grid of the four images."""
    for item in items:
        if item.category in folders:
            name = f"{item.id.rpartition('_')[2]}.webp"
            for arm, image_of in images.items():
                grid = [image_of(item, seed) for seed in range(seeds)]
                layouts.grid(grid, root / item.category / arm / name, **WEBP)


def commands(call: Call, *, dimension: str, mode: str, folders: Sequence[str]) -> list[list[str]]:
    """Runs the dimension's module, since the official shell scripts fail, and copies its newest results to `out`."""
    alone = len(folders) == 1
    score = [call.python, "-m", f"scripts.{dimension}.{dimension}_score", "--mode", mode]
    score += ["--image_dirname", str(call.images / folders[0] if alone else call.images)]
    score += ["--model_names", *call.arms, "--image_grid", *("2,2" for _ in call.arms)]
    score += [] if alone else ["--class_items", *folders]
    return [score, ["sh", "-e", "-c", KEEP, dimension, mode, str(call.out)]]


def read(out: Path, items: Sequence[Item], arm: str, *, dimension: str, mode: str, folder: str) -> list[Value]:
    """One value per prompt of one arm, from the newest table of prompts; an empty cell gives no value.

    Args:
        out: The folder of the results.
        items: The prompts.
        arm: A column of the table.
        dimension: Dimension of the table, and name of the only field; "text" has the fields `TEXT`.
        mode: "EN" or "ZH".
        folder: Folder of the prompts, if the table's ids lack it; else "".

    Raises:
        ValueError: There is no table, it has no such column, or a cell cannot be read.
    """
    tables = sorted(out.glob(f"{dimension}_prompt_score_{mode}_*.csv"))  # the name ends with the time
    if not tables:
        raise ValueError(f"{out} must hold {dimension}_prompt_score_{mode}_*.csv, got none")
    path = tables[-1]
    values = Values(path, items)
    for line, row in csv_rows(path, ("", arm)):
        if row[arm]:
            name = f"{folder}_{row['']}" if folder else row[""]
            if dimension == "text":
                values.add(line, name, None, **_text(path, line, row[arm], values.item(line, name)))
            else:
                values.add(line, name, None, **{dimension: number(path, line, dimension, row[arm])})
    return values.found


def _text(path: Path, line: int, cell: str, item: Item) -> dict[str, float]:
    """The fields of a cell like "[191.75, 0.0, 0.1875]": edit distance, share without error, share of words found."""
    try:
        distance, complete, share = json.loads(cell)
    except (TypeError, ValueError):
        raise wrong(path, line, "hold [ED, CR, WAC]", cell) from None
    words = asked(str(item.extra["text"]))
    numbers = [number(path, line, name, one) for name, one in zip(TEXT, (distance, complete, share), strict=False)]
    return dict(zip(TEXT, (*numbers[:2], numbers[2] * words, float(words)), strict=True))


def asked(text: str) -> int:
    """How many words the official code counts in the text that an image must show; in Chinese each letter is one."""
    cleaned = re.sub(rf"[^\u4e00-\u9fa5\s{LATIN}]", "", text)
    if re.search("[\u4e00-\u9fa5]", cleaned):
        return len(re.sub(r"\s", "", cleaned))
    return len(cleaned.split())
