"""experiments/<name>.yaml: a question, and the runs that answer it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import artifacts, params, partition, styles
from pipeline.ablations.results import METRICS
from pipeline.artifacts import read_text
from pipeline.evaluation.recipes import PRODUCT, titles
from pipeline.flow.schedule import Schedule
from pipeline.params import Params
from pipeline.registry.provenance import flatten
from pipeline.styles import Lora

FOLDER = Path("experiments")
KEYS = ("question", "paper", "answer", "arms", "set", "variants", "seeds", "plot")
REQUIRED = ("question", "variants", "plot")
VARIANT, ARM = "variant", "arm"  # choices for a plot's x axis and lines, besides parameters and metrics
SEEDED = ("train_slow.seed", "train_fast.seed", "train_controls.seed")
SEED_STRIDE = 10  # more than the adapters of one run, whose seeds count on from the run's
WITHOUT_EFFECT = ("register.", "runtime.")  # sections that change no result of an experiment
PLAIN = re.compile(r"(?!(null|true|false|nan|inf)$)[A-Za-z_][\w./-]*", re.IGNORECASE)

Overrides = dict[str, Any]
"""section.key to value."""


@dataclass(frozen=True)
class Run:
    """One DVC experiment: params.yaml with some values changed."""

    grid: str
    variant: str
    seed: int | None
    """Seed of the trainings; None = the seed of params.yaml."""
    overrides: Overrides = field(hash=False)
    params: Overrides = field(hash=False)
    """Every parameter of the run."""

    @property
    def name(self) -> str:
        """Name of the DVC experiment."""
        return f"{self.grid}-{slug(self.variant)}" + ("" if self.seed is None else f"-s{self.seed}")

    @property
    def changes(self) -> list[str]:
        """The overrides as `dvc exp run -S` takes them."""
        return [f"{key}={hydra(value)}" for key, value in self.overrides.items()]


@dataclass(frozen=True)
class Plot:
    """The figure: a panel for each metric of `y` over `x`, with a line for each arm or value of a parameter."""

    x: str
    y: tuple[str, ...]
    lines: str = ARM


@dataclass(frozen=True)
class Grid:
    """A question and its runs.

    Attributes:
        name: Name of the file.
        question: A sentence.
        paper: What the paper says about it, or None.
        answer: A sentence that a person wrote after reading the table, or None.
        arms: The arms of the evaluation that the table shows.
        variants: What each variant changes, by label, in the order of the table.
        seeds: Seeds of the trainings, one run each; None = the seed of params.yaml.
        plot: The figure.
        runs: Variants x seeds, ordered by seed, so that two runs at once share no unfinished stage.
    """

    name: str
    question: str
    paper: str | None
    answer: str | None
    arms: tuple[str, ...]
    variants: dict[str, Overrides]
    seeds: tuple[int | None, ...]
    plot: Plot
    runs: tuple[Run, ...]

    @property
    def touched(self) -> set[str]:
        """The parameters that can differ between the runs of this grid."""
        return {key for run in self.runs for key in run.overrides}

    def base(self, values: Mapping[str, Any]) -> Overrides:
        """The parameters of a run that all runs must share."""
        return {k: v for k, v in values.items() if k not in self.touched and not k.startswith(WITHOUT_EFFECT)}


def names(folder: Path = FOLDER) -> list[str]:
    """The names of all grids."""
    return sorted(file.stem for file in folder.glob("*.yaml") if not artifacts.foreign(file.name))


def load(name: str, defaults: Params, folder: Path = FOLDER) -> Grid:
    """Reads experiments/<name>.yaml and checks all of its runs.

    Args:
        name: Name of the file.
        defaults: params.yaml, which the runs change.
        folder: Where the file lies.

    Raises:
        ValueError: The file is missing or is no YAML; a key is unknown, missing or of a wrong type; a parameter
            is unknown or out of range. The message names the file, the key, the rule and the value.
    """
    file = folder / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(names(folder)) or "nothing"
        raise ValueError(f"{file} is missing; {folder}/ has {known}")
    try:
        content = YAML(typ="safe", pure=True).load(read_text(file))
    except YAMLError as error:
        raise ValueError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    try:
        return from_dict(name, content, defaults)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def from_dict(name: str, content: Any, defaults: Params) -> Grid:
    """Checks a grid's content and expands it; raises as `load` does."""
    _check_keys(content)
    for key in ("question", "paper", "answer"):
        text = content.get(key)
        if not (isinstance(text, str) and text.strip() or text is None and key != "question"):
            raise ValueError(f"{key} must be a sentence{'' if key == 'question' else ' or null'}, got {text!r}")
    arms = _names("arms", content.get("arms", [PRODUCT]), tuple(titles()))
    shared = _overrides("set", content.get("set") or {})
    variants = content["variants"]
    if not isinstance(variants, dict) or not variants:
        raise ValueError(f"variants must map labels to parameters, got {variants!r}")
    variants = {str(label): _overrides(f"variants.{label}", values) for label, values in variants.items()}
    seeds = _seeds(content.get("seeds", [None]))
    runs = tuple(
        _run(name, label, seed, shared | values, defaults) for seed in seeds for label, values in variants.items()
    )
    _check_names(runs)
    plot = _plot(content["plot"], variants)
    words: dict[str, Any] = {
        key: content[key].strip() if content.get(key) else None for key in ("question", "paper", "answer")
    }
    return Grid(name=name, **words, arms=arms, variants=variants, seeds=seeds, plot=plot, runs=runs)


def slug(label: str) -> str:
    """A label as a part of a git reference: "uniform 4+4" -> "uniform-4-4"."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def hydra(value: Any) -> str:
    """A value in the grammar of `dvc exp run -S`."""
    if isinstance(value, list | tuple):
        return f"[{','.join(hydra(item) for item in value)}]"
    if isinstance(value, str) and not PLAIN.fullmatch(value):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return value if isinstance(value, str) else json.dumps(value)


def agree(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Whether two runs agree in all parameters that both have and that can change a result."""
    shared = [key for key in left.keys() & right.keys() if not key.startswith(WITHOUT_EFFECT)]
    return all(_compared(key, left[key]) == _compared(key, right[key]) for key in shared)


def _compared(key: str, value: Any) -> Any:
    """A value such that two wordings of the same value are equal."""
    if key == Lora.key:
        return list(map(styles.parse, value))
    return list(value) if isinstance(value, tuple) else value


def _run(grid: str, variant: str, seed: int | None, overrides: Overrides, defaults: Params) -> Run:
    """A run, with its parameters checked like those of params.yaml."""
    if seed is not None:
        overrides = overrides | {key: SEED_STRIDE * seed + i for i, key in enumerate(SEEDED, start=1)}
    changed = params.to_dict(defaults)
    try:
        for key, value in overrides.items():
            section, name = key.split(".")
            if section not in changed or name not in changed[section]:
                raise ValueError(f"{key} is not a parameter of params.yaml")
            changed[section][name] = value
        checked = params.from_dict(changed)
        partition.compute(checked, Schedule(mu=0.0))  # whether the steps fit depends on no schedule
    except ValueError as error:
        raise ValueError(f"variants.{variant}: {error}") from error
    return Run(grid, variant, seed, overrides, flatten(params.to_dict(checked)))


def _check_keys(content: Any) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"a grid must hold the keys {', '.join(KEYS)}, got {content!r}")
    for key in content:
        if key not in KEYS:
            raise ValueError(f"{key} is not a key of a grid, which has {', '.join(KEYS)}")
    for key in REQUIRED:
        if key not in content:
            raise ValueError(f"{key} is missing")


def _names(key: str, value: Any, known: tuple[str, ...]) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or any(name not in known for name in names):
        raise ValueError(f"{key} must be among {', '.join(known)}, got {value!r}")
    return tuple(names)


def _overrides(key: str, value: Any) -> Overrides:
    if not isinstance(value, dict) or any(not re.fullmatch(r"\w+\.\w+", str(name)) for name in value):
        raise ValueError(f"{key} must map section.key of params.yaml to values, got {value!r}")
    return dict(value)


def _seeds(value: Any) -> tuple[int | None, ...]:
    whole = isinstance(value, list) and all(
        seed is None or isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in value
    )
    if not whole or not value or len(set(value)) < len(value):
        raise ValueError(f"seeds must be a list of different integers from 0 or null, got {value!r}")
    return tuple(value)


def _check_names(runs: tuple[Run, ...]) -> None:
    seen: dict[str, Run] = {}
    for run in runs:
        if not slug(run.variant):
            raise ValueError(f"variants must have a letter or a digit in each label, got {run.variant!r}")
        other = seen.setdefault(run.name, run)
        if other is not run:
            raise ValueError(
                f"variants must give names of their own, got {run.name} from {other.variant} and {run.variant}"
            )


def _plot(value: Any, variants: Mapping[str, Overrides]) -> Plot:
    if not isinstance(value, dict) or not {"x", "y"} <= value.keys() <= {"x", "y", "lines"}:
        raise ValueError(f"plot must hold x, y and possibly lines, got {value!r}")
    x, lines = value["x"], value.get("lines", ARM)
    for key, what, known in (("x", x, (VARIANT, *METRICS)), ("lines", lines, (ARM,))):
        if what not in known and not all(what in values for values in variants.values()):
            raise ValueError(
                f"plot.{key} must be {', '.join(known)} or a parameter that every variant sets, got {what!r}"
            )
    return Plot(x, _names("plot.y", value["y"], tuple(METRICS)), lines)
