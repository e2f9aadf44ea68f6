"""What a benchmark measures of an arm: its columns, which tables, report, verdicts, ablations and registry read."""

from __future__ import annotations

from dataclasses import dataclass

PAIRED = "paired"  # prompt by prompt: the difference has an interval
PLAIN = "plain"  # by the two numbers of all prompts, which have no interval


@dataclass(frozen=True)
class Column:
    """One number of an arm.

    Attributes:
        key: In the rows of metrics.json or latency.json.
        title: As within a sentence.
        digits: After the decimal point, as it is shown.
        unit: "%" shows a ratio as percent; "" is none.
        better: "higher" or "lower"; "" where neither is.
        interval: Whether <key>_low and <key>_high are the ends of a 95 % interval.
        compared: How the student is held against another arm: PAIRED, PLAIN, or "" for not at all.
        headline: Whether a registered version of the student is tagged with it.
        ablated: Whether the tables of the ablations have it.
        note: A sentence about it for the report, or "".
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
        """Its numbers in a row: the value and, where it has one, the ends of the interval."""
        return (self.key, *(f"{self.key}_{end}" for end in ("low", "high") if self.interval))

    @property
    def label(self) -> str:
        """What stands beside an axis or over a column: the title, with the unit where the numbers do not carry it."""
        return self.title if self.unit in ("", "%", "×") else f"{self.title}, {self.unit}"

    def number(self, value: float) -> str:
        """The value as it is shown, without its unit."""
        return f"{100 * value if self.unit == '%' else value:.{self.digits}f}"

    def ahead(self, ours: float, theirs: float) -> bool:
        """Whether the first of two values is better."""
        return ours > theirs if self.better == "higher" else ours < theirs


@dataclass(frozen=True)
class Benchmark:
    """A set of prompts and what is measured on their images.

    Attributes:
        name: Of the benchmark.
        columns: In the order of the tables.
        main: The column that a reader looks at first, a ratio to the teacher.
    """

    name: str
    columns: tuple[Column, ...]
    main: Column
