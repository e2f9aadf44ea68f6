"""benchmarks/params.yaml: which benchmarks and arms run, and where the weights and the official scorers lie."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import names, params
from pipeline.artifacts import named
from pipeline.faults import require_all
from pipeline.param_checks import LARGEST

ROOT = Path("benchmarks")
FILE = ROOT / "params.yaml"
ARM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where an official scorer runs.

    Attributes:
        python: The interpreter of the scorer's environment; None = not set up.
        checkout: The official repository; None = not set up.
        options: The scorer's other settings.
    """

    python: str | None = None
    checkout: Path | None = None
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The content of benchmarks/params.yaml.

    Attributes:
        benchmarks: The benchmarks that `dvc repro` runs.
        arms: The arms to compare.
        seed: Image k of prompt i starts from the noise of seed + (images per prompt) * i + k, in every arm.
        limit: How many prompts of each category; None = all.
        batch: Images in one forward.
        bootstrap: How many resamples for the intervals.
        sides: How many prompts the report shows side by side.
        bundles: Further arms: other bundles for the same teacher, by name.
        folders: Further arms: folders of images that were made elsewhere, by name.
        references: Folders of photographs for distances to "real", by benchmark.
        weights: Files or folders of the scorers' weights, by name.
        external: Where the official scorers run, by name.
    """

    benchmarks: tuple[str, ...]
    arms: tuple[str, ...]
    seed: int
    limit: int | None
    batch: int
    bootstrap: int
    sides: int
    bundles: Mapping[str, str]
    folders: Mapping[str, Path]
    references: Mapping[str, Path]
    weights: Mapping[str, Path]
    external: Mapping[str, Environment]


def load(file: Path = FILE) -> Settings:
    """Reads the file.

    Raises:
        ValueError: The file is missing or no YAML.
        Faults: A key is unknown or missing, or a value is wrong; each sentence names the key, the rule and the value.
    """
    content = params.read(file)
    sections = [f.name for f in fields(Settings)]
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold the keys {', '.join(sections)}, got {content!r}")
    for key in content:
        if key not in sections:
            hint = names.meant(key, sections)
            raise ValueError(f"{key} is not a key of {file}, which has {', '.join(sections)}{hint}")
    missing = [key for key in sections if key not in content]
    if missing:
        raise ValueError(f"{missing[0]} is missing from {file}")
    require_all([partial(_check, key, content[key]) for key in sections])
    return Settings(
        benchmarks=tuple(content["benchmarks"]),
        arms=tuple(content["arms"]),
        seed=content["seed"],
        limit=content["limit"],
        batch=content["batch"],
        bootstrap=content["bootstrap"],
        sides=content["sides"],
        bundles=dict(content["bundles"]),
        folders=_paths(content["folders"]),
        references=_paths(content["references"]),
        weights=_paths(content["weights"]),
        external={name: _environment(entry) for name, entry in content["external"].items()},
    )


AT_LEAST = {"seed": 0, "batch": 1, "bootstrap": 100, "sides": 0}


def _check(key: str, value: Any) -> None:
    if key in ("benchmarks", "arms"):
        if not (isinstance(value, list) and value and all(isinstance(name, str) for name in value)):
            raise ValueError(f"{key} must be a list of names, got {value!r}")
        for name in value if key == "arms" else ():
            if not ARM.fullmatch(name):
                raise ValueError(f"arms must be names of letters, digits, dots and dashes, got {name!r}")
    elif key == "limit":
        if value is not None and not _whole(value, 1):
            raise ValueError(f"limit must be an integer of at least 1 or null, got {value!r}")
    elif key in AT_LEAST:
        if not _whole(value, AT_LEAST[key]):
            raise ValueError(f"{key} must be an integer of at least {AT_LEAST[key]}, got {value!r}")
    elif key == "external":
        _check_external(value)
    elif not _texts(value):
        raise ValueError(f"{key} must name a path for each name, got {value!r}")


def _check_external(value: Any) -> None:
    known = [f.name for f in fields(Environment)]
    if not isinstance(value, dict):
        raise ValueError(f"external must hold a section for each scorer, got {value!r}")
    for name, entry in value.items():
        if not isinstance(entry, dict) or not entry.keys() <= {*known}:
            raise ValueError(f"external.{name} must hold {', '.join(known)}, got {entry!r}")
        for key in ("python", "checkout"):
            if not isinstance(entry.get(key), str | None):
                raise ValueError(f"external.{name}.{key} must be a path or null, got {entry[key]!r}")
        if not _texts(entry.get("options") or {}):
            raise ValueError(f"external.{name}.options must hold texts, got {entry['options']!r}")


def _whole(value: Any, at_least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and at_least <= value <= LARGEST


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) and isinstance(v, str) for key, v in value.items())


def _paths(entries: Mapping[str, str]) -> dict[str, Path]:
    return {name: named(path) for name, path in entries.items()}


def _environment(entry: Mapping[str, Any]) -> Environment:
    checkout = entry.get("checkout")
    return Environment(
        python=entry.get("python"),
        checkout=named(checkout) if checkout else None,
        options=dict(entry.get("options") or {}),
    )
