"""The published rivals of a preset's teacher: entries that are copied into `rivals` of params.yaml on request."""

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline import names, params
from pipeline.artifacts import atomic_file, read_text

SECTION = "rivals"


def known(preset: str) -> dict[str, Any]:
    """The rivals of a preset, by name."""
    return YAML(typ="safe", pure=True).load(_text(preset)).get(SECTION, {})


def add(preset: str, wanted: Sequence[str], path: str | Path = "params.yaml") -> list[str]:
    """Copies entries of a preset, with their comments, into the section `rivals`; all else stays.

    Args:
        preset: One of `presets.names`.
        wanted: Names of the preset's rivals.
        path: The parameter file.

    Returns:
        The names that were not there with the same values before; if there are none, the file stays unchanged.

    Raises:
        ValueError: A name is unknown, or params.yaml has another entry of this name; or the file is missing or invalid.
    """
    every, there = known(preset), params.load(path).rivals
    for name in wanted:
        names.check("--rival", name, every, where=f" for {preset}" if every else f"nothing for {preset}")
        if there.get(name, every[name]) != every[name]:
            raise ValueError(f"{SECTION}.{name} of {path} must be absent or as in {preset}, got {there[name]!r}")
    new = [name for name in dict.fromkeys(wanted) if name not in there]
    if not new:
        return []
    lines = read_text(path).splitlines()
    row = next(i for i, line in enumerate(lines) if re.match(rf"{SECTION}\s*:", line))
    lines[row] = re.sub(rf"^({SECTION}\s*:\s*)\{{\s*\}}", r"\1  ", lines[row]).rstrip()
    block = all(any(line.startswith(f"  {name}:") for line in lines[row:]) for name in there)
    if not block or not re.fullmatch(rf"{SECTION}\s*:(\s+#.*)?", lines[row]):
        raise ValueError(
            f"{SECTION} of {path} must be {{}} or a block of lines, indented by 2, for a preset to add to it"
        )
    lines[row + 1 : row + 1] = [line for name in new for line in _entry(preset, name)]
    with atomic_file(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return new


def _entry(preset: str, name: str) -> list[str]:
    """The lines of an entry in the preset's file."""
    lines = _text(preset).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(f"  {name}:"))
    end = next((i for i in range(first + 1, len(lines)) if not lines[i].startswith("    ")), len(lines))
    return lines[first:end]


def _text(preset: str) -> str:
    return (files("pipeline.presets") / f"{preset}.yaml").read_text(encoding="utf-8")
