"""Small files and images for the tests of the official benchmarks."""

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.evaluation.benchmarks.official import SHIPPED, Call, Item
from pipeline.evaluation.benchmarks.table import BENCHMARKS

DATA = Path(__file__).parent / "data"
COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40))  # of the images 0 to 3 of a prompt
SIZE = 32
# OneIG's lists in its format, with texts of our own
CATEGORIES = {
    "Anime_Stylization": ("anime", 2),
    "Portrait": ("human", 1),
    "General_Object": ("object", 1),
    "Text_Rendering": ("text", 2),
    "Knowledge_Reasoning": ("reasoning", 1),
}
WANTED = ("['one two', 'three four']", "['one two three four five six seven eight nine ten']")


def shipped(name: str) -> dict[str, Path]:
    """The files of a benchmark whose prompts come with the project, by name."""
    return {file.name: SHIPPED / "prompts" / name / file.name for file in BENCHMARKS[name].source.files}


def items(name: str, limit: int | None = None) -> list[Item]:
    """The prompts of a benchmark whose prompts come with the project."""
    benchmark = BENCHMARKS[name]
    return benchmark.first(benchmark.parse(shipped(name)), limit)


def oneig_files(folder: Path) -> dict[str, Path]:
    """The seven prompts of a small OneIG, as the files that its parser reads."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "OneIG-Bench.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["category", "id", "prompt_en", "type", "prompt_length", "class"])
        for category, (name, count) in CATEGORIES.items():
            rows.writerows([category, f"{i:03d}", f"a {name}, the {i}th", "NP", "short", ""] for i in range(count))
    with (folder / "text_content.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["", "id", "prompt_en", "text_content"])
        rows.writerows([i, f"{i:03d}", f"a text, the {i}th", text] for i, text in enumerate(WANTED))
    (folder / "style.csv").write_text(",id,class\n0,000,Pop Art\n1,001,\n")
    for name, count in CATEGORIES.values():
        entry = {"question": '{"1": "Is it there?", "2": "Is it red?"}', "dependency": '{"1": [0], "2": [1]}'}
        (folder / f"{name}.json").write_text(json.dumps({f"{i:03d}": entry for i in range(count)}))
    return {file.name: folder / file.name for file in BENCHMARKS["oneig"].source.files}


class Images:
    """One-colour PNG files: the colour says the number of the image."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, item: Item, seed: int) -> Path:
        path = self.folder / f"{item.id}-{seed}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((SIZE, SIZE, 3), COLOURS[seed], dtype=np.uint8)).save(path)
        return path


def call(folder: Path, *, python: str = "python3", **options: str) -> Call:
    """A call of a scorer for the arms teacher and student, with images and results below a folder."""
    (folder / "out").mkdir(parents=True, exist_ok=True)
    return Call(
        python=python,
        checkout=folder,
        images=folder / "images",
        out=folder / "out",
        arms=("teacher", "student"),
        height=SIZE,
        width=SIZE,
        options=options,
    )
