"""The section `rivals` of params.yaml: published weights and folders of images that are compared with the pair."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pipeline.artifacts import named
from pipeline.faults import RightValues, refusals
from pipeline.param_checks import check_section, number, parsed, text
from pipeline.styles import RivalFile

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
OPTIONAL = {"sigmas": None, "terminal": "teacher", "base": None}
"""Keys that an entry may lack. An entry with `sigmas` has no `shift`."""
Terminal = float | Literal["teacher"] | None
"""Where the last level is stretched to; "teacher" = as the teacher's, None = nowhere."""


@dataclass(frozen=True)
class Expert:
    """One LoRA file of a rival, and the steps in which it is active; None = all steps."""

    file: RivalFile
    steps: tuple[int, ...] | None = None


def _experts(key: str, value: Any) -> tuple[Expert, ...]:
    """The files of `weights`: one path, or a list of {weights, steps}."""
    if isinstance(value, str):
        return (Expert(_file(key, value)),)
    keys = {"weights", "steps"}
    if not isinstance(value, list) or not value or not all(isinstance(e, dict) and e.keys() == keys for e in value):
        raise ValueError(f"{key} must be a path or a list of {{weights, steps}}, got {value!r}")
    found = []
    for entry in value:
        path, steps = entry["weights"], entry["steps"]
        if not isinstance(path, str):
            raise ValueError(f"{key} must hold a path in each weights, got {path!r}")
        if not isinstance(steps, list) or not steps or not all(type(step) is int for step in steps):
            raise ValueError(f"{key} must hold a list of steps from 0 for {path}, got {steps!r}")
        found.append(Expert(_file(key, path), tuple(steps)))
    return tuple(found)


def _file(key: str, path: str) -> RivalFile:
    try:
        return RivalFile(path)
    except ValueError as error:
        raise ValueError(f"{key.rpartition('.')[0]}: {error}") from error


def _sigmas(key: str, value: Any) -> tuple[float, ...] | None:
    """Given levels, without the final 0."""
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(_number(level) for level in value):
        raise ValueError(f"{key} must be a list of numbers or null, got {value!r}")
    levels = tuple(map(float, value))
    if levels[0] > 1 or levels[-1] <= 0 or any(after >= before for before, after in pairwise(levels)):
        raise ValueError(f"{key} must decrease within (0, 1], without the final 0, got {value!r}")
    return levels


def _terminal(key: str, value: Any) -> Terminal:
    if value is None:
        return None
    if value == "teacher":
        return "teacher"
    if not _number(value) or not 0 < value < 1:
        raise ValueError(f"{key} must be null, or above 0 and below 1, or absent for the teacher's, got {value!r}")
    return float(value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class Published:
    """Published weights of one or more LoRA files, and how their authors run them."""

    weights: tuple[Expert, ...] = parsed(_experts)
    scale: float = number(above=0)
    steps: int = number(at_least=1, at_most=1000)
    shift: float | None = number(at_least=0.01, at_most=100)
    sigmas: tuple[float, ...] | None = parsed(_sigmas)
    terminal: Terminal = parsed(_terminal)
    sampler: str = text(r"euler|renoise", "be euler or renoise")
    true_cfg_scale: float = number(at_least=1)
    guidance_scale: float | None = number(at_least=0)
    license: str = text(r"(?s).*\S.*", "name the licence of the weights")
    base: str | None = text(r"[^/@\s]+/[^/@\s]+", "be the hub's owner/name or null")

    @property
    def files(self) -> tuple[RivalFile, ...]:
        """The LoRA files."""
        return tuple(expert.file for expert in self.weights)

    @property
    def active(self) -> tuple[int, ...]:
        """The place in `files` of the LoRA that is active in each step, length `steps`."""
        owners = {step: i for i, expert in enumerate(self.weights) for step in expert.steps or range(self.steps)}
        return tuple(owners[step] for step in range(self.steps))

    def fits(self, hub: str | None) -> bool:
        """Whether the teacher of a hub's owner/name@revision is the base; a teacher of unknown origin may be."""
        return self.base is None or hub is None or hub.partition("@")[0] == self.base


def check(content: Any) -> tuple[Any, list[str]]:
    """The section `rivals` as it is, and one sentence per fault."""
    if not isinstance(content, dict):
        return RightValues({}), [f"rivals must map names to entries, {{}} for none, got {content!r}"]
    found = []
    for name, entry in content.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            found.append(f"rivals must have names of letters, digits, dots and dashes, got {name!r}")
        elif isinstance(entry, dict) and "images" in entry:
            found += refusals([partial(_check_images, name, entry)])
        else:
            found += _read(name, entry)[1]
    return RightValues({}) if found else content, found


def published(rivals: Mapping[str, Any], hub: str | None) -> dict[str, Published]:
    """The entries with weights for a teacher, by name.

    Args:
        rivals: The section, which `check` found right.
        hub: `teacher.hub`. Entries with another `base` are left out.
    """
    every = {name: _read(name, entry)[0] for name, entry in rivals.items() if "images" not in entry}
    return {name: rival for name, rival in every.items() if rival.fits(hub)}


def images(rivals: Mapping[str, Any]) -> dict[str, Path]:
    """The folders of images that were made elsewhere, by name."""
    return {name: named(entry["images"]) for name, entry in rivals.items() if "images" in entry}


def _read(name: str, entry: Any) -> tuple[Published, list[str]]:
    where = f"rivals.{name}"
    if isinstance(entry, dict):
        entry = OPTIONAL | ({} if entry.get("sigmas") is None else {"shift": None}) | entry
    rival, found = check_section(where, Published, entry)
    return rival, found + refusals(partial(rule, where, rival) for rule in (_check_levels, _check_experts))


def _check_levels(where: str, rival: Published) -> None:
    if rival.sigmas is None:
        if rival.steps == 1 and isinstance(rival.terminal, float):
            raise ValueError(f"{where}.terminal must be null for a single step, got {rival.terminal}")
        return
    if rival.shift is not None or rival.terminal != "teacher":
        raise ValueError(f"{where}.sigmas are the final levels: leave shift and terminal out")
    if len(rival.sigmas) != rival.steps:
        raise ValueError(
            f"{where}.sigmas must hold a level for each of the {rival.steps} steps, got {len(rival.sigmas)}"
        )


def _check_experts(where: str, rival: Published) -> None:
    if rival.weights[0].steps is None:
        return
    steps = [step for expert in rival.weights for step in expert.steps or ()]
    if sorted(steps) != list(range(rival.steps)):
        raise ValueError(
            f"{where}.weights must name each of the steps 0 to {rival.steps - 1} once, got {sorted(steps)}"
        )


def _check_images(name: str, entry: Mapping[str, Any]) -> None:
    if entry.keys() != {"images"} or not isinstance(entry["images"], str) or not entry["images"]:
        raise ValueError(f"rivals.{name} must hold images: FOLDER and no other key, got {dict(entry)!r}")
