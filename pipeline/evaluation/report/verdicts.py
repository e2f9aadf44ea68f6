"""Compares the student with the free ways to use its teacher, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.evaluation.arms import ShownArm
from pipeline.evaluation.benchmarks import PAIRED, PLAIN, Column
from pipeline.evaluation.benchmarks.scenes import SCENES
from pipeline.evaluation.recipes import PRODUCT

RIVALS = ("base_unguided", "base_guided_equal_cost", "base_guided", "base_ab2")
"""The last is compared if it is among the arms."""
AHEAD, OPEN, BEHIND = "ahead", "no clear difference", "behind"


def verdicts(metrics: Mapping, arms: Sequence[ShownArm]) -> list[tuple[str, str]]:
    """One sentence per rival with "won", "lost" or "open" before it.

    In a paired column the student is ahead or behind if the 95 % interval of the difference excludes 0. A plain column
    has no interval: there the better number is ahead.

    Args:
        metrics: Scores and times, as `outcome.read` gives them.
        arms: The arms, for their titles.
    """
    titles = {arm.name: arm.title for arm in arms}
    found = []
    for name in (name for name in RIVALS if name in titles):
        places: dict[str, list[str]] = {AHEAD: [], OPEN: [], BEHIND: []}
        for column in SCENES.columns:
            place = _place(metrics, name, column)
            if place is not None:
                places[place].append(column.title)
        used = [place for place, labels in places.items() if labels]
        outcomes: dict[tuple[str, ...], str] = {(AHEAD,): "won", (BEHIND,): "lost"}
        outcome = outcomes.get(tuple(used), "open")
        words = "; ".join(f"{place} in {', '.join(places[place])}" for place in used)
        found.append((outcome, f"Against “{titles[name]}” ({metrics['arms'][name]['nfe']} forwards): {words}."))
    return found


def _place(metrics: Mapping, rival: str, column: Column) -> str | None:
    """The student's standing in a column; None if the column is not compared or not measured."""
    if column.compared == PAIRED and (gap := metrics["comparisons"][rival].get(column.key)):
        if gap["low"] <= 0 <= gap["high"]:
            return OPEN
        return AHEAD if column.ahead(gap["value"], 0) else BEHIND
    if column.compared == PLAIN:
        ours, theirs = (metrics["arms"][name][column.key] for name in (PRODUCT, rival))
        if ours is not None and theirs is not None:
            return AHEAD if column.ahead(ours, theirs) else BEHIND
    return None
