"""experiments/results/<name>.csv: the results of a question, one row per run and arm.

DVC's experiments do not travel with a clone; these files do.
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts import atomic_file
from pipeline.evaluation.benchmarks import Column
from pipeline.evaluation.benchmarks.appearance import APPEARANCE
from pipeline.evaluation.benchmarks.scenes import SCENES
from pipeline.evaluation.benchmarks.speed import SPEED

FOLDER = Path("experiments/results")
IDENTITY = ("variant", "seed", "arm", "experiment", "changes", "base", "baseline", "revision", "jobs", "prompts")


METRICS: dict[str, Column] = {column.key: column for column in (*SCENES.columns, *APPEARANCE, *SPEED)}
"""The metrics that a table may show and a plot may draw; results of older runs lack some."""


@dataclass(frozen=True)
class Result:
    """The result of one run for one arm.

    Attributes:
        variant: The variant's label in the grid.
        seed: Seed of the trainings; None = the seed of params.yaml.
        arm: The key in metrics.json.
        experiment: The name of the DVC experiment.
        changes: The overrides of the run, as the grid had them then.
        base: Digest of the parameters that all runs of the grid share.
        baseline: The commit that the run started from.
        revision: The commit that DVC made for the run.
        jobs: How many runs went at once; None = unknown.
        prompts: Held-out prompts of the evaluation.
        metrics: The arm's row of metrics.json and latency.json.
    """

    variant: str
    seed: int | None
    arm: str
    experiment: str
    changes: str
    base: str
    baseline: str
    revision: str
    jobs: int | None
    prompts: int
    metrics: Mapping[str, float | None]


def path(name: str, folder: Path = FOLDER) -> Path:
    """The file of a grid."""
    return folder / f"{name}.csv"


def read(name: str, folder: Path = FOLDER) -> list[Result]:
    """The results of a grid; [] without a file.

    Raises:
        ValueError: The file is no table of results.
    """
    file = path(name, folder)
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as stream:
        try:
            return [_result(row) for row in csv.DictReader(stream, strict=True)]
        except (csv.Error, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is not a table of results ({error}): check it out again") from error


def write(name: str, results: Iterable[Result], folder: Path = FOLDER) -> None:
    """Writes the file whole, the rows in the order given."""
    results = list(results)
    metrics = list(dict.fromkeys(key for result in results for key in result.metrics))
    with atomic_file(path(name, folder)) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow([*IDENTITY, *metrics])
        for result in results:
            values = [result.metrics.get(key) for key in metrics]
            identity = [getattr(result, key) for key in IDENTITY]
            table.writerow([*identity, *("" if value is None else f"{value:.6g}" for value in values)])


def _result(row: dict[str, str]) -> Result:
    numbers: dict[str, Any] = {key: int(row[key]) if row[key] else None for key in ("seed", "jobs", "prompts")}
    words: dict[str, Any] = {key: row[key] for key in IDENTITY if key not in numbers}
    metrics = {key: float(text) if text else None for key, text in row.items() if key not in IDENTITY}
    return Result(**words, **numbers, metrics=metrics)
