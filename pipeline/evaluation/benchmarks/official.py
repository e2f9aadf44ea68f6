"""What an official benchmark is: its prompts, the files that its scorers read, and how scores become numbers.

A benchmark is one file of this folder and one line of `table.py`. The file only describes: `pipeline/benchmarking`
fetches the prompts, generates the images, runs the scorers and collects the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation.benchmarks import Column
from pipeline.evaluation.benchmarks.statistics import Statistic, mean

SHIPPED = Path(__file__).resolve().parents[3] / "benchmarks"  # prompts and scripts that come with the project


@dataclass(frozen=True, kw_only=True)
class Item:
    """One prompt of a benchmark.

    Attributes:
        id: The benchmark's own name of the prompt, unique within it.
        prompt: The text that an image is generated from, unchanged.
        category: Group of the prompt, such as GenEval's tag; a bootstrap draws within groups. "" if there is none.
        extra: What a scorer needs beside the prompt, in JSON's types.
    """

    id: str
    prompt: str
    category: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file of a benchmark's source.

    Attributes:
        path: Path in the repository; its last part is also the local file name.
        sha256: Hex digest of the file; None if nobody could read the file yet, then only the counts are checked.
    """

    path: str
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The file's name without its folders."""
        return Path(self.path).name


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the prompts come from.

    Attributes:
        site: "github", "hub-dataset", "local" (written by this project) or "user" (the one file that the user names).
        repository: "owner/name"; "" for a local source and for the user's file.
        revision: The commit.
        files: All files that `parse` reads, except the user's own.
        licence: SPDX name and what it means for the prompts, in one line.
        shipped: Whether the files come with this project, in `benchmarks/prompts/<benchmark>/`.
    """

    site: str
    repository: str = ""
    revision: str = ""
    files: tuple[SourceFile, ...]
    licence: str
    shipped: bool = False


@dataclass(frozen=True, kw_only=True)
class Value:
    """A scorer's result for one image, or for all images of one prompt.

    Attributes:
        item: The prompt's id.
        seed: Number of the image within its prompt, from 0; None if the scorer judges all images of a prompt at once.
        fields: Numbers by name, or texts that the scorer read in the image.
    """

    item: str
    seed: int | None
    fields: Mapping[str, float | str]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number of the table, computed from one scorer's values.

    Attributes:
        column: Key, title, digits, unit and direction.
        scorer: The name of the in-process or external scorer whose values it reads.
        fields: Which of the scorer's fields a prompt's row holds, each averaged over the prompt's images.
        statistic: How the rows of all prompts become one number.
        categories: Only prompts of these categories have a value; () = all.
        scored: Whether a prompt of the categories has a value; None = all have.
        lost: Ids of prompts that a known bug of the scorer may leave out; such a prompt counts if it has a value.
        retained: Whether the arm's number is shown as a share of the teacher's number; else as a difference.
    """

    column: Column
    scorer: str
    fields: tuple[str, ...]
    statistic: Statistic = mean
    categories: tuple[str, ...] = ()
    scored: Callable[[Item], bool] | None = None
    lost: tuple[str, ...] = ()
    retained: bool = True

    def asks(self, item: Item) -> bool:
        """Whether the prompt must have a value."""
        return (not self.categories or item.category in self.categories) and (self.scored is None or self.scored(item))


@dataclass(frozen=True, kw_only=True)
class Distance:
    """One number of the table, computed from the features of all images: a distance between two distributions.

    Attributes:
        column: Key, title, digits and direction.
        scorer: The in-process scorer that gives the features.
        kind: "fid" or "kid".
        reference: "teacher" for the teacher's images of the same prompts, "real" for photographs that the user names.
    """

    column: Column
    scorer: str
    kind: str
    reference: str


ImageOf = Callable[[Item, int], Path]
"""The PNG file of an image, by prompt and by number within the prompt."""
Layout = Callable[[Path, Sequence[Item], Mapping[str, ImageOf], int], None]
"""Writes an official layout: the root to fill, the prompts, the images of each arm by its name (one arm where a scorer
takes one at a time), images per prompt."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """The arguments of an external scorer's commands.

    Attributes:
        python: The interpreter of the scorer's environment.
        checkout: The official repository.
        images: The root of the official layout, an absolute path.
        out: An empty folder for the results, an absolute path.
        arms: The arms whose images lie in the layout.
        height: Pixels of one image.
        width: Pixels of one image.
        options: The user's other settings for this scorer, such as a folder of weights.
    """

    python: str
    checkout: Path
    images: Path
    out: Path
    arms: tuple[str, ...]
    height: int
    width: int
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class External:
    """A scorer that runs in an environment of its own, by its official command.

    Attributes:
        name: Name of the scorer, as in `Metric.scorer`.
        version: The commit of the official code that this entry was written for.
        layout: Writes the files that the scorer reads.
        commands: The scorer's command lines, in order; each runs in the checkout.
        parse: Reads every value of one arm from the scorer's files in `Call.out`. Raises ValueError for a wrong line.
        needs: The options that the user must set, each with a description.
        note: What a user must know about the scorer's needs and bugs, or "".
        whole: The scorer takes all arms in one call.
    """

    name: str
    version: str
    layout: Layout
    commands: Callable[[Call], list[list[str]]]
    parse: Callable[[Path, Sequence[Item], str], list[Value]]
    needs: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    whole: bool = False


@dataclass(frozen=True, kw_only=True)
class Published:
    """A number that somebody published for a model.

    Attributes:
        model: The model's name in lower case as part of a folder or hub name, such as "qwen-image".
        metric: The key of the column.
        value: The number, in the column's own scale.
        where: The publication.
    """

    model: str
    metric: str
    value: float
    where: str


@dataclass(frozen=True, kw_only=True)
class OfficialBenchmark:
    """One official benchmark.

    Attributes:
        name: As commands name it.
        title: As tables show it.
        about: What the benchmark measures, in one sentence.
        source: Where the prompts come from.
        parse: The prompts, from the source's files by name. Raises ValueError where a file has another format.
        counts: How many prompts each category has; `prepare` refuses other counts.
        seeds: Images per prompt.
        metrics: The numbers computed from scorers' values.
        distances: The numbers computed from features.
        external: The scorers that run in an environment of their own.
        published: What others measured.
        sanity: For a metric, the least value of a working teacher run: below it the scorer is broken.
    """

    name: str
    title: str
    about: str
    source: Source
    parse: Callable[[Mapping[str, Path]], list[Item]]
    counts: Mapping[str, int]
    seeds: int
    metrics: tuple[Metric, ...] = ()
    distances: tuple[Distance, ...] = ()
    external: tuple[External, ...] = ()
    published: tuple[Published, ...] = ()
    sanity: Mapping[str, float] = field(default_factory=dict)

    @property
    def scorers(self) -> tuple[str, ...]:
        """The names of all scorers, each once."""
        names = [metric.scorer for metric in self.metrics] + [distance.scorer for distance in self.distances]
        return tuple(dict.fromkeys(names))

    @property
    def in_process(self) -> tuple[str, ...]:
        """The scorers that run in this process."""
        return tuple(name for name in self.scorers if name not in {own.name for own in self.external})

    def first(self, items: Sequence[Item], limit: int | None) -> list[Item]:
        """The first `limit` prompts of each category, in their order; all where `limit` is None."""
        if limit is None:
            return list(items)
        taken: dict[str, int] = {}
        chosen = []
        for item in items:
            taken[item.category] = taken.get(item.category, 0) + 1
            if taken[item.category] <= limit:
                chosen.append(item)
        return chosen


def by_prompt(metric: Metric, values: Sequence[Value], items: Sequence[Item]) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a metric, and the category of each, for `Statistic`.

    Args:
        metric: Which fields are read.
        values: Values of one arm, at least one for each prompt of the metric except those in `Metric.lost`.
        items: The prompts.

    Returns:
        float64 (P, F): each field's mean over the images of a prompt, and int64 (P,): the index of its category.

    Raises:
        ValueError: A prompt has no value, or a value lacks a field.
    """
    asked = [item for item in items if metric.asks(item)]
    found: dict[str, list[list[float]]] = {item.id: [] for item in asked}
    for value in values:
        if value.item in found:
            missing = [name for name in metric.fields if name not in value.fields]
            if missing:
                raise ValueError(f"{metric.scorer}: {value.item} must have {missing[0]}, got {sorted(value.fields)}")
            found[value.item].append([float(value.fields[name]) for name in metric.fields])
    missed = [name for name, rows in found.items() if not rows]
    empty = [name for name in missed if name not in metric.lost]
    if empty:
        which = f"{len(empty)}, the first is {empty[0]}"
        raise ValueError(f"{metric.scorer} must have a value for each of {len(asked)} prompts, got none for {which}")
    asked = [item for item in asked if item.id not in missed]
    categories = {category: place for place, category in enumerate(dict.fromkeys(item.category for item in asked))}
    rows = np.array([np.mean(found[item.id], axis=0) for item in asked], dtype=np.float64)
    return rows, np.array([categories[item.category] for item in asked], dtype=np.int64)
