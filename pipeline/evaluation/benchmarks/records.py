"""Reads files of one record per line; an error names the file, the line, the rule and the value found."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.evaluation.benchmarks.official import Item, Value

LONGEST = 100  # letters shown of the value found


def wrong(path: Path, line: int, rule: str, got: object) -> ValueError:
    """The error that a line of a file raises; `rule` follows "must"."""
    text = repr(got)
    shown = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return ValueError(f"{path}, line {line}, must {rule}, got {shown}")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file with their numbers from 1, without their ends. Raises ValueError for a binary file."""
    yield from enumerate(artifacts.read_text(path).removesuffix("\n").split("\n"), start=1)


def json_lines(path: Path, keys: Mapping[str, type]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, with the number of each line.

    Args:
        path: The file.
        keys: Required keys of each object, with their types.

    Raises:
        ValueError: A line is no JSON object, or a key is missing or of another type.
    """
    for number, line in lines(path):
        try:
            record = json.loads(line)
        except ValueError:
            raise wrong(path, number, "be a JSON object", line) from None
        if not isinstance(record, dict):
            raise wrong(path, number, "be a JSON object", line)
        for key, kind in keys.items():
            if type(record.get(key)) is not kind:
                raise wrong(path, number, f"have {key} as {kind.__name__}", record.get(key))
        yield number, record


def csv_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with a header, each with the number of its last line.

    Args:
        path: The file.
        columns: Columns that the header must have.

    Raises:
        ValueError: A column is missing, or a row has another number of cells than the header.
    """
    reader = csv.reader(io.StringIO(artifacts.read_text(path)), strict=True)
    header: list[str] | None = None
    try:
        for row in reader:
            if header is None:
                header = row
                missing = [column for column in columns if column not in header]
                if missing:
                    raise wrong(path, 1, f"have the column {missing[0]!r}", header)
            elif len(row) != len(header):
                raise wrong(path, reader.line_num, f"have {len(header)} cells as the header has", row)
            else:
                yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise wrong(path, reader.line_num, "be a row of CSV", str(error)) from None
    if header is None:
        raise wrong(path, 1, "be a header", "")


def number(path: Path, line: int, name: str, text: object) -> float:
    """The text as a number. Raises ValueError unless the number is finite."""
    try:
        found = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise wrong(path, line, f"have a finite number as {name}", text)
    return found


class Values:
    """Collects the values of a scorer's file, at most one for each prompt and seed.

    Args:
        path: The file, for messages.
        items: The prompts that the file may name.
    """

    def __init__(self, path: Path, items: Sequence[Item]) -> None:
        self.found: list[Value] = []
        self._path = path
        self._items = {item.id: item for item in items}
        self._seen: set[tuple[str, int | None]] = set()

    def item(self, line: int, name: str) -> Item:
        """A prompt by its id. Raises ValueError if no prompt has this id."""
        if name not in self._items:
            raise wrong(self._path, line, f"name one of the {len(self._items)} prompts", name)
        return self._items[name]

    def image(self, line: int, pattern: re.Pattern, key: str, name: str, like: str) -> tuple[Item, str]:
        """The prompt of an image file, and the number of the image.

        Args:
            line: Line of the file, for messages.
            pattern: Finds the prompt's id and the number at the end of the name.
            key: What the file calls the name, for messages.
            name: The image file's name.
            like: A name as it should be, for messages.

        Raises:
            ValueError: The name has another form, or no prompt has this id.
        """
        found = pattern.search(name)
        if found is None:
            raise wrong(self._path, line, f"have {key} like {like}", name)
        return self.item(line, found[1]), found[2]

    def add(self, line: int, name: str, seed: int | None, **fields: float | str) -> None:
        """Adds a value. Raises ValueError if the prompt is unknown or has a value for this seed already."""
        self.item(line, name)
        if (name, seed) in self._seen:
            image = name if seed is None else f"image {seed} of {name}"
            raise wrong(self._path, line, f"be the only one for {image}", fields)
        self._seen.add((name, seed))
        self.found.append(Value(item=name, seed=seed, fields=fields))
