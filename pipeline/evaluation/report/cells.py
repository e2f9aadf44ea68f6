"""Numbers as the report shows them."""

from __future__ import annotations

from pipeline.evaluation.benchmarks import Column
from pipeline.evaluation.report import figures
from pipeline.evaluation.report.markup import tag, text

GOOD, FAIR = 0.95, 0.80  # retention from which a figure is shown as good, or as fair
DASH = "–"
NARROW = "\u202f"  # a space at which no line breaks
SUFFIXES = {"%": f"{NARROW}%", "×": "×"}  # units that stand behind each number


def grade(ratio: float) -> str:
    """The CSS class of a retention."""
    return "good" if ratio >= GOOD else "mid" if ratio >= FAIR else "bad"


def percent(ratio: float | None) -> str:
    """A ratio as percent with one decimal, or a dash."""
    return DASH if ratio is None else f"{100 * ratio:.1f}{NARROW}%"


def between(low: float, high: float) -> str:
    """The ends of an interval of ratios, as percent."""
    return f"{100 * low:.1f} to {100 * high:.1f}"


def fixed(value: float | None, digits: int) -> str:
    """A number with `digits` decimals, or a dash."""
    return DASH if value is None else f"{value:.{digits}f}"


def column_label(measure: Column) -> str:
    """A column's label as a table head, capitalised unless it is a name of the code."""
    return measure.label if "_" in measure.label else measure.label[0].upper() + measure.label[1:]


def value_cell(measure: Column, value: float | None) -> str:
    """A column's value with its unit, or a dash."""
    return DASH if value is None else measure.number(value) + SUFFIXES.get(measure.unit, "")


def ratio_cells(ratio: float | None, low: float | None, high: float | None, arm: str, full: float) -> list[str]:
    """The two cells of a ratio to the teacher: in words, and as a bar."""
    if ratio is None or low is None or high is None:
        return [DASH, DASH]
    chip = tag("span", text(percent(ratio)), css=f"chip {grade(ratio)}")
    return [chip + tag("span", text(between(low, high)), css="range"), figures.bar(ratio, low, high, arm, full)]
