"""OneIG-Bench, in English and Chinese: five dimensions of a generated image (Chang et al., arXiv 2506.07977)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.evaluation.benchmarks import Column
from pipeline.evaluation.benchmarks.official import Item, Metric, OfficialBenchmark, Published, Source, SourceFile
from pipeline.evaluation.benchmarks.oneig_scorers import TEXT, externals
from pipeline.evaluation.benchmarks.published import qwen_image
from pipeline.evaluation.benchmarks.records import csv_rows, wrong
from pipeline.evaluation.benchmarks.text_measures import oneig_score

COMMIT = "41b49831e79e6dde5323618c164da1c4cf0f699d"
FOLDERS = {  # of the official layout, by the category in the list of prompts
    "Anime_Stylization": "anime",
    "Portrait": "human",
    "General_Object": "object",
    "Text_Rendering": "text",
    "Knowledge_Reasoning": "reasoning",
    "Multilingualism": "multilingualism",
}


@dataclass(frozen=True, kw_only=True)
class Edition:
    """The English or the Chinese half.

    Attributes:
        name: Name of the benchmark.
        title: Title of the benchmark.
        language: "en" or "zh".
        prompts: The list of prompts.
        column: Column of the prompts in the list.
        suffix: Suffix of the language's other files.
        counts: How many prompts each folder has.
        aligned: The folders with questions about their images.
        worst: The edit distance that counts as no text at all.
    """

    name: str
    title: str
    language: str
    prompts: str
    column: str
    suffix: str
    counts: Mapping[str, int]
    aligned: tuple[str, ...]
    worst: int


def parse(files: Mapping[str, Path], *, edition: Edition) -> list[Item]:
    """The prompts with the texts and questions for the scorers. Raises ValueError where a file has another format."""
    needed = {folder: _questions(files[f"{folder}{edition.suffix}.json"]) for folder in edition.aligned}
    needed["text"] = _column(files[f"text_content{edition.suffix}.csv"], "text_content", "text")
    styles = _column(files["style.csv"], "class", "style")
    path, items = files[edition.prompts], []
    for line, row in csv_rows(path, ("category", "id", edition.column)):
        if row["category"] not in FOLDERS:
            raise wrong(path, line, f"have a category among {', '.join(FOLDERS)}", row["category"])
        folder, number = FOLDERS[row["category"]], row["id"]
        if folder in needed and number not in needed[folder]:
            raise wrong(path, line, f"have an id that the file for {folder} has too", number)
        extra = {"language": edition.language, **needed.get(folder, {}).get(number, {})}
        if folder == "anime":
            extra |= styles.get(number, {})
        items.append(Item(id=f"{folder}_{number}", prompt=row[edition.column], category=folder, extra=extra))
    return items


def _column(path: Path, column: str, key: str) -> dict[str, dict[str, Any]]:
    """A column of a CSV file by id, without its empty cells."""
    return {row["id"]: {key: row[column]} for _, row in csv_rows(path, ("id", column)) if row[column]}


def _questions(path: Path) -> dict[str, dict[str, Any]]:
    """Each prompt's questions and their parents: a question counts only if its parents get a yes; 0 is no parent."""
    found = {}
    for name, entry in artifacts.read_json(path).items():
        try:
            questions, dependencies = (json.loads(entry[key]) for key in ("question", "dependency"))
            broken = questions.keys() != dependencies.keys() or any(
                parent != 0 and str(parent) not in questions for parents in dependencies.values() for parent in parents
            )
        except (AttributeError, KeyError, TypeError, ValueError):
            broken = True
        if broken:
            raise ValueError(f"{path} must have questions and what they depend on for {name}, got {entry!r:.100}")
        found[name] = {"questions": questions, "dependencies": dependencies}
    return found


def _has_style(item: Item) -> bool:
    return "style" in item.extra


def _metrics(edition: Edition) -> tuple[Metric, ...]:
    """The five dimensions, and two of them also by the official code; there is no official total."""
    name, title = edition.name, edition.title
    alignment = Metric(
        column=Column(f"{name}_alignment", f"{title}, alignment", 3, better="higher"),
        scorer="oneig_alignment",
        fields=("alignment",),
        categories=edition.aligned,
    )
    text = Metric(
        column=Column(f"{name}_text", f"{title}, text", 3, better="higher"),
        scorer="oneig_text",
        fields=TEXT,
        statistic=oneig_score(edition.worst),
        categories=("text",),
    )
    return (
        alignment,
        text,
        Metric(
            column=Column(f"{name}_reasoning", f"{title}, reasoning", 3, better="higher"),
            scorer="oneig_reasoning",
            fields=("reasoning",),
            categories=("reasoning",),
        ),
        Metric(
            column=Column(f"{name}_style", f"{title}, style", 3, better="higher"),
            scorer="oneig_style",
            fields=("style",),
            scored=_has_style,
        ),
        Metric(
            column=Column(f"{name}_diversity", f"{title}, diversity", 3, better="higher"),
            scorer="oneig_diversity",
            fields=("diversity",),
        ),
        _official(alignment),
        _official(text),
    )


def _official(metric: Metric) -> Metric:
    """The same number by the official code."""
    column = replace(metric.column, key=f"{metric.column.key}_official", title=f"{metric.column.title} by its own code")
    return replace(metric, column=column, scorer=f"{metric.scorer}_official")


def _benchmark(edition: Edition, digests: Mapping[str, str], *published: Published) -> OfficialBenchmark:
    return OfficialBenchmark(
        name=edition.name,
        title=edition.title,
        about="Whether images fit their prompts, show the text asked for, know the world, keep a style and differ.",
        source=Source(
            site="github",
            repository="OneIG-Bench/OneIG-Benchmark",
            revision=COMMIT,
            files=tuple(SourceFile(path=path, sha256=sha256) for path, sha256 in digests.items()),
            licence="CC BY-NC 4.0 by the hub data set's card, not for commercial use; Chang et al., arXiv 2506.07977",
        ),
        parse=partial(parse, edition=edition),
        counts=edition.counts,
        seeds=4,
        metrics=_metrics(edition),
        external=externals(COMMIT, edition.language, tuple(edition.counts), edition.aligned),
        published=published,
    )


COUNTS = {"anime": 245, "human": 244, "object": 206, "text": 200, "reasoning": 225}
STYLE = {"scripts/style/style.csv": "6add59b8a5791b97c3abaec4b193d8a1635ef6377e2b2edbbf7730beaa097761"}
ONEIG = _benchmark(
    Edition(
        name="oneig",
        title="OneIG",
        language="en",
        prompts="OneIG-Bench.csv",
        column="prompt_en",
        suffix="",
        counts=COUNTS,
        aligned=("anime", "human", "object"),
        worst=100,
    ),
    {
        "OneIG-Bench.csv": "e06c65b32252d82406fb1a27f13022b38d432c899a2486eb49ab0c100f83b3e1",
        "scripts/alignment/Q_D/anime.json": "21ea3d0360e69d72bc5f4cbb93b203d293d16f5c2f626634a52b990119e0a6e3",
        "scripts/alignment/Q_D/human.json": "0e92b25c6bc4091cac05fa0f4269b3b37465a7cd43ca2768f55f56149cdbf13b",
        "scripts/alignment/Q_D/object.json": "350dfdf72c2da143c78a7544d4c554faf6698c1ba4fcd27c7a9cc9199d487e0e",
        "scripts/text/text_content.csv": "ffbf0b588c617b77caf1e9a733496ff5b4704b6534df5fba13201a83f21e0512",
        **STYLE,
    },
    qwen_image("oneig_diversity", 0.200),
)
ONEIG_ZH = _benchmark(
    Edition(
        name="oneig_zh",
        title="OneIG-ZH",
        language="zh",
        prompts="OneIG-Bench-ZH.csv",
        column="prompt_cn",
        suffix="_zh",
        counts=COUNTS | {"multilingualism": 200},
        aligned=("anime", "human", "object", "multilingualism"),
        worst=50,
    ),
    {
        "OneIG-Bench-ZH.csv": "8fc4ae1403db32dbb1203cc457361c3215500b34e741194a53f5002c9d824700",
        "scripts/alignment/Q_D/anime_zh.json": "171740d2d7158f0da2d907481b5cd97380398e4a45b53f0976ad4d91e01151d4",
        "scripts/alignment/Q_D/human_zh.json": "819f13b1efab67bdfba9ca633a37e009013350d148323f5d65b2a467f1789c64",
        "scripts/alignment/Q_D/multilingualism_zh.json": (
            "63614e72dbd86f1e56ed625a55f73d509323d34b68fb27d8fed0f87a49f69db9"
        ),
        "scripts/alignment/Q_D/object_zh.json": "19f69cfdf17119ff5400919341c930468a0de5ee06b9c91d8f16ba2365f51498",
        "scripts/text/text_content_zh.csv": "6250b3be96e9c4fd4c9cb858dd36b5b2dc4fc8fccb8e4ed0317f5da392db9a1a",
        **STYLE,
    },
)
