"""The measured numbers of a bundle as a table of Markdown."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.evaluation import outcome, recipes
from pipeline.evaluation.benchmarks import Column
from pipeline.evaluation.benchmarks.scenes import SCENES
from pipeline.evaluation.benchmarks.speed import SPEED

SHOWN = ("nfe", "retention", "psnr", "speedup_batch1")
COLUMNS = tuple(column for column in (*SCENES.columns, *SPEED) if column.key in SHOWN)
STUDENT = "student"
DASH = "–"


def of_bundle(evaluation: Path, digest: str) -> dict[str, Any]:
    """The numbers of an evaluation; arguments and errors as for `table`."""
    metrics = outcome.read(evaluation)
    file = evaluation / "metrics.json"
    if metrics.get("bundle_digest") != digest:
        raise ValueError(f"{file} must measure the bundle {digest}, got {metrics.get('bundle_digest')}")
    if STUDENT not in metrics.get("arms", {}):
        raise ValueError(f"{file} must hold the arm {STUDENT}: evaluate the bundle anew")
    return metrics


def table(evaluation: Path, digest: str) -> str:
    """A row for each arm: forwards, retention with its interval, PSNR and speed-up; the student's row is bold.

    Args:
        evaluation: The folder with metrics.json and latency.json.
        digest: The bundle's, which the evaluation must have measured.

    Raises:
        FileNotFoundError: There is no metrics.json.
        ValueError: As `outcome.read` does; or the evaluation measured another bundle, or no student.
    """
    metrics = of_bundle(evaluation, digest)
    head = ["arm", *(column.label for column in COLUMNS)]
    rows = [head, ["---"] * len(head)]
    titles = recipes.titles()
    for name, arm in metrics["arms"].items():
        cells = [titles.get(name, name), *(_cell(column, arm) for column in COLUMNS)]
        rows.append([f"**{cell}**" for cell in cells] if name == STUDENT else cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + f"\n\n{_notes(metrics)}"


def _cell(column: Column, arm: Mapping[str, Any]) -> str:
    """A value with its unit, and its interval."""
    value, *ends = (arm.get(key) for key in column.keys)
    if value is None:
        return DASH
    unit = {"%": " %", "×": "×"}.get(column.unit, "")
    known = [column.number(end) for end in ends if end is not None]
    return f"{column.number(value)}{unit}{f' [{known[0]}, {known[1]}]' if len(known) == 2 else ''}"


def _notes(metrics: Mapping[str, Any]) -> str:
    """What was measured, and on what."""
    notes = " ".join(dict.fromkeys(column.note for column in COLUMNS if column.note and column.key != "retention"))
    return (
        f"Measured on {metrics['prompts']} held-out prompts. Retention is an arm's score over the teacher's, with its "
        f"95 % interval. {notes} PSNR compares with the teacher's image of the same prompt and noise. "
        f"The times are of {metrics.get('device', 'the machine of the evaluation')}."
    )
