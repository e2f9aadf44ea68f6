"""Presets: values of params.yaml for a teacher; the preset's own file gives the reason for each value."""

import json
import re
import statistics
from importlib.resources import files
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline import params
from pipeline.artifacts import atomic_file, read_text
from pipeline.names import meant

Change = tuple[str, Any, Any]
"""(section.key, value before, value after)."""


def names() -> list[str]:
    """The names of the presets in this package."""
    return sorted(file.name.removesuffix(".yaml") for file in files(__name__).iterdir() if file.name.endswith(".yaml"))


def apply(name: str, path: str | Path = "params.yaml") -> list[Change]:
    """Rewrites a parameter file with a preset's values; its comments and all other values stay.

    Args:
        name: One of `names`.
        path: The parameter file.

    Returns:
        The changes; if there are none, the file stays unchanged.

    Raises:
        ValueError: The preset is unknown; the file is missing, or is invalid before or after the change; or a value to
            change is not on one line.
    """
    if name not in names():
        raise ValueError(f"the preset must be one of {', '.join(names())}, got {name}{meant(name, names())}")
    params.load(path)
    text = read_text(path)
    content, wanted = YAML().load(text), _read((files(__name__) / f"{name}.yaml").read_text(encoding="utf-8"))
    changes = [
        (section, key, value)
        for section, values in wanted.items()
        if section != "rivals"  # copied on request, see `published`
        for key, value in values.items()
        if content[section][key] != value
    ]
    lines, column = text.splitlines(), _comment_column(text)
    for section, key, value in changes:
        row, start = content[section].lc.value(key)
        found = _VALUE.fullmatch(lines[row][start:])
        assert found is not None, "a value that the parser has read"
        _, comment = found.groups(default="")
        line = lines[row][:start] + _scalar(value)
        lines[row] = f"{line.ljust(column - 1)} {comment.strip()}" if comment else line
    text = "\n".join(lines) + "\n"
    _check(text, content, changes, path)
    if changes:
        with atomic_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
    return [(f"{section}.{key}", content[section][key], value) for section, key, value in changes]


_VALUE = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|\[[^]]*\]|[^#]*?)(\s+#.*)?\s*""")
"""A value on one line, and its comment."""


def _read(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def _comment_column(text: str) -> int:
    """The column at which most comments after a value start."""
    starts = [match.end(1) for match in re.finditer(r"^( *\w+: .*? +)#", text, re.MULTILINE)]
    columns = [start - text.rfind("\n", 0, start) - 1 for start in starts]
    return statistics.mode(columns) if columns else 0


def _scalar(value: Any) -> str:
    """A value as params.yaml writes it."""
    if isinstance(value, float) and value != 0 and abs(value) < 0.01:
        mantissa, exponent = f"{value:e}".split("e")
        return f"{float(mantissa)}e{int(exponent)}"
    return json.dumps(value) if value == "" or value == " " or not isinstance(value, str | list) else _plain(value)


def _plain(value: str | list[str]) -> str:
    return f"[{', '.join(value)}]" if isinstance(value, list) else value


def _check(text: str, content: Any, changes: list[tuple[str, str, Any]], path: str | Path) -> None:
    """Raises ValueError unless the new text has the old values except for the changes."""
    expected = {section: dict(values) for section, values in content.items()}
    for section, key, value in changes:
        expected[section][key] = value
    rewritten = _read(text)
    if rewritten != expected:
        keys = ", ".join(f"{section}.{key}" for section, key, _ in changes)
        raise ValueError(f"{path}: each of {keys} must stand on one line for a preset to rewrite it")
    params.from_dict(rewritten)
