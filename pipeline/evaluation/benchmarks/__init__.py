"""The columns that a benchmark measures of an arm; tables, report, verdicts, ablations and registry read them."""

from __future__ import annotations

from dataclasses import dataclass

PAIRED = "paired"  # prompt by prompt: the difference has an interval
PLAIN = "plain"  # by the two numbers over all prompts, without an interval


@dataclass(frozen=True)
class Column:
    """One number of an arm.

    Attributes:
        key: Key in the rows of metrics.json or latency.json.
        title: Name of the column, as written within a sentence.
        digits: Decimals that are shown.
        unit: "%" shows a ratio as percent; "" is none.
        better: "higher" or "lower"; "" if neither is better.
        interval: Whether <key>_low and <key>_high are the ends of a 95 % interval.
        compared: How the student is compared with another arm: PAIRED, PLAIN, or "" for not at all.
        headline: Whether a registered version of the student is tagged with the number.
        ablated: Whether the tables of the ablations show the column.
        note: A sentence about the column for the report, or "".
    """

    key: str
    title: str
    digits: int
    unit: str = ""
    better: str = ""
    interval: bool = False
    compared: str = ""
    headline: bool = False
    ablated: bool = True
    note: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        """The column's keys in a row: the value and, if there is an interval, its two ends."""
        return (self.key, *(f"{self.key}_{end}" for end in ("low", "high") if self.interval))

    @property
    def label(self) -> str:
        """The label of an axis or a column: the title, with the unit unless each number carries the unit."""
        return self.title if self.unit in ("", "%", "×") else f"{self.title}, {self.unit}"

    def number(self, value: float) -> str:
        """The value as text, without its unit."""
        return f"{100 * value if self.unit == '%' else value:.{self.digits}f}"

    def ahead(self, ours: float, theirs: float) -> bool:
        """Whether the first of two values is better."""
        return ours > theirs if self.better == "higher" else ours < theirs


@dataclass(frozen=True)
class Benchmark:
    """A set of prompts and what is measured on their images.

    Attributes:
        name: Name of the benchmark.
        columns: In the order of the tables.
        main: The column that a reader looks at first, a ratio to the teacher.
    """

    name: str
    columns: tuple[Column, ...]
    main: Column
