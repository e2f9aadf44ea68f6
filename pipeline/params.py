"""params.yaml as frozen dataclasses; a wrong key, type or range is refused here, once."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_type_hints

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pipeline import names, styles
from pipeline.artifacts import read_text
from pipeline.styles import Lora

if TYPE_CHECKING:
    from pipeline.backbones.teacher import Teacher

LARGEST = 10**14  # of an integer that has no bound of its own: sizes are products of some, which must fit into 64 bits

TYPE_NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    str | None: "a text or null",
    tuple[str, ...]: "a list of texts",
    tuple[Lora, ...]: "a list of texts",
}


def _number(at_least: float | None = None, above: float | None = None, at_most: float | None = None) -> Any:
    return field(metadata={"at_least": at_least, "above": above, "at_most": at_most})


def _text(pattern: str, rule: str) -> Any:
    return field(metadata={"pattern": pattern, "rule": rule})


@dataclass(frozen=True, kw_only=True)
class TeacherParams:
    """The model that is followed, and how it is run."""

    path: str = _text(r".+", "name a folder")
    family: str = _text(r".+", "name a family")
    hub: str | None = _text(r"[^/@\s]+/[^/@\s]+@[^/@\s]+", "be owner/name@revision or null")
    loras: tuple[Lora, ...]
    dtype: str = _text(r"fp32|bf16", "be fp32 or bf16")
    quantization: str = _text(r"none|int8|fp8|nf4", "be none, int8, fp8 or nf4")
    max_sequence_length: int = _number(at_least=1, at_most=512)
    height: int = _number(at_least=16)
    width: int = _number(at_least=16)
    steps: int = _number(at_least=2, at_most=1000)
    true_cfg_scale: float = _number(at_least=1)
    guidance_scale: float = _number(at_least=0)
    negative_prompt: str

    @property
    def base(self) -> Teacher:
        """The model as `backbones.load` takes it."""
        from pipeline.backbones.teacher import Teacher  # imports torch, which the command line does without

        return Teacher(path=Path(self.path), dtype=self.dtype, quantization=self.quantization, loras=self.loras)


@dataclass(frozen=True, kw_only=True)
class TrajectoriesParams:
    """What of the teacher is recorded."""

    prompts_file: str | None
    prompts: int = _number(at_least=1)
    seeds_per_prompt: int = _number(at_least=1)
    seed: int = _number(at_least=0)
    shard_size: int = _number(at_least=1)
    steps: int = _number(at_least=1)
    precision: str = _text(r"bf16|fp32", "be bf16 or fp32")


@dataclass(frozen=True, kw_only=True)
class AnchorsParams:
    """Other prompts, under which the student is kept at the guided base."""

    prompts_file: str | None
    prompts: int = _number(at_least=0)
    seed: int = _number(at_least=0)


@dataclass(frozen=True, kw_only=True)
class PartitionParams:
    """How the path is split."""

    rule: str = _text(r".+", "name a rule")
    slow_steps: int = _number(at_least=1)
    fast_steps: int = _number(at_least=1)
    threshold_u: float = _number(above=0, at_most=1)


@dataclass(frozen=True, kw_only=True)
class TrainingParams:
    """What both phases' trainings share."""

    objective: str = _text(r".+", "name an objective")
    rank: int = _number(at_least=1)
    alpha: float = _number(above=0)
    targets: str = _text(r".+", "name a set of modules")
    batch: int = _number(at_least=1)
    anchor_batch: int = _number(at_least=1)
    precision: str = _text(r"bf16|fp32", "be bf16 or fp32")


@dataclass(frozen=True, kw_only=True)
class PhaseParams:
    """One phase's own training."""

    learning_rate: float = _number(above=0, at_most=1)
    train_steps: int = _number(at_least=1)
    seed: int = _number(at_least=0)


@dataclass(frozen=True, kw_only=True)
class ControlsParams:
    """The adapters that only the comparison needs."""

    arms: tuple[str, ...]
    seed: int = _number(at_least=0)


@dataclass(frozen=True, kw_only=True)
class OfficialParams:
    """The paper's own training, one of train_controls.arms."""

    objective: str = _text(r".+", "name an objective")
    rank: int = _number(at_least=1)
    alpha: float = _number(above=0)
    targets: str = _text(r".+", "name a set of modules")
    batch: int = _number(at_least=1)
    learning_rate: float = _number(above=0, at_most=1)
    train_steps: int = _number(at_least=1)
    samples: int = _number(at_least=1)


@dataclass(frozen=True, kw_only=True)
class StudentParams:
    """How the student is run."""

    true_cfg_scale: float = _number(at_least=1)


@dataclass(frozen=True, kw_only=True)
class EvaluationParams:
    """What is measured, on how many images."""

    prompts_file: str | None
    prompts: int = _number(at_least=2)
    seed: int = _number(at_least=0)
    batch: int = _number(at_least=1)
    swaps: tuple[str, ...]
    diversity_prompts: int = _number(at_least=1)
    diversity_seeds: int = _number(at_least=2)
    latency_repeats: int = _number(at_least=1)
    bootstrap: int = _number(at_least=100)
    grid_prompts: int = _number(at_least=1)


@dataclass(frozen=True, kw_only=True)
class RegisterParams:
    """Under what name a bundle is registered, and what a promotion asks of it."""

    name: str = _text(r"(?=.*\S)[^./:][^/:]{0,249}", "be at most 250 letters without / and :, the first no dot")
    min_retention: float = _number(at_least=0, at_most=2)


@dataclass(frozen=True, kw_only=True)
class RuntimeParams:
    """Knobs that change no result."""

    device: str = _text(r"auto|cpu|cuda(:\d{1,2})?", "be auto, cpu or cuda")
    threads: int = _number(at_least=0, at_most=4096)
    checkpoint_every: int = _number(at_least=1)
    gradient_checkpointing: bool
    offload: bool
    cache_limit_gb: float = _number(at_least=0)


@dataclass(frozen=True, kw_only=True)
class Params:
    """Every section of params.yaml."""

    teacher: TeacherParams
    trajectories: TrajectoriesParams
    partition: PartitionParams
    anchors: AnchorsParams
    training: TrainingParams
    train_slow: PhaseParams
    train_fast: PhaseParams
    train_controls: ControlsParams
    official: OfficialParams
    student: StudentParams
    evaluation: EvaluationParams
    register: RegisterParams
    runtime: RuntimeParams


class Faults(ValueError):
    """Everything that is wrong, a sentence each; as a text the first of them, and how many follow."""

    def __init__(self, sentences: Iterable[str]):
        self.sentences = tuple(sentences)
        first, *others = self.sentences
        super().__init__(f"{first} (and {len(others)} more)" if others else first)


class WrongValue(Exception):
    """A check asked for a value that is wrong or missing itself, and is refused for that already."""


class RightValues:
    """A file or a section without its wrong values, in place of its dataclass; asking for one raises WrongValue."""

    def __init__(self, values: Mapping[str, Any]):
        vars(self).update(values)

    def __getattr__(self, name: str) -> Any:
        raise WrongValue(name)


def refusals(checks: Iterable[Callable[[], object]]) -> list[str]:
    """What the checks refuse, each sentence once. A check of a value that is wrong itself is left out."""
    found: list[str] = []
    for check in checks:
        try:
            check()
        except WrongValue:
            continue
        except Faults as error:
            found += error.sentences
        except ValueError as error:
            found.append(" ".join(str(error).split()))
        except OSError as error:
            found.append(f"{error.strerror}: {error.filename}" if error.strerror else str(error))
    return list(dict.fromkeys(found))


def require_all(checks: Iterable[Callable[[], object]]) -> None:
    """Makes every check; raises Faults with all that they refuse."""
    found = refusals(checks)
    if found:
        raise Faults(found)


def load(path: str | Path = "params.yaml") -> Params:
    """Reads a parameter file.

    Raises:
        ValueError: The file is missing, not UTF-8 or no YAML.
        Faults: A key is unknown or missing; a value has a wrong type or is out of its range. Each sentence names the
            key, the rule and the value.
    """
    return from_dict(read(path))


def read(path: str | Path = "params.yaml") -> Any:
    """The content of a parameter file, as nested dicts.

    Raises:
        ValueError: The file is missing, not UTF-8 or no YAML.
    """
    try:
        text = read_text(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: run this in the root of the project") from error
    try:
        return YAML(typ="safe", pure=True).load(text)  # DVC's own parser: 1e-3 is a number in both
    except MarkedYAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error.problem}, in line {error.problem_mark.line + 1}") from error
    except (YAMLError, ValueError) as error:  # a ValueError of Python's own: a number with thousands of digits
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def from_dict(content: Any) -> Params:
    """Checks the sections of a parameter file, as nested dicts; raises Faults as `load` does."""
    params, found = sift(content)
    if found:
        raise Faults(found)
    return params


def sift(content: Any) -> tuple[Params, list[str]]:
    """The right values of a parameter file's content, and a sentence for everything that is wrong with it."""
    sections = get_type_hints(Params)
    found, values = _wrong_keys("params.yaml", sections, content), {}
    for name, cls in sections.items():
        if isinstance(content, dict) and name in content:
            values[name], wrong = _section(name, cls, content[name])
            found += wrong
    params = cast(Params, RightValues(values)) if found else Params(**values)
    return params, found + refusals([partial(check_steps, params)])


def check_steps(params: Params) -> None:
    """Raises ValueError where the recorded steps do not divide the teacher's, or the student has more than those."""
    steps, recorded = params.teacher.steps, params.trajectories.steps
    if steps % recorded:
        raise ValueError(f"trajectories.steps must divide teacher.steps = {steps}, got {recorded}")
    chosen = params.partition.slow_steps + params.partition.fast_steps
    if chosen > recorded:
        raise ValueError(
            f"partition.slow_steps + fast_steps must be at most the {recorded} recorded steps, got {chosen}"
        )


def _section(section: str, cls: type, content: Any) -> tuple[Any, list[str]]:
    types = get_type_hints(cls)
    found, values = _wrong_keys(section, types, content), {}

    def take(f: Field) -> None:
        values[f.name] = _value(f"{section}.{f.name}", f, types[f.name], content[f.name])

    found += refusals(partial(take, f) for f in fields(cls) if isinstance(content, dict) and f.name in content)
    return (RightValues(values) if found else cls(**values)), found


def _wrong_keys(where: str, known: dict[str, Any], content: Any) -> list[str]:
    """Sentences on the keys of a section, or of the file; a misspelt key is one, not an unknown and a missing one."""
    if not isinstance(content, dict):
        return [f"{where} must hold the keys {', '.join(known)}, got {_shown(content)}"]
    prefix = "" if where == "params.yaml" else f"{where}."
    missing = [key for key in known if key not in content]
    found = []
    for key in content:
        if key not in known:
            name = key if isinstance(key, str) and re.fullmatch(r"[\w-]+", key) else repr(key)
            hint = names.meant(key, missing)
            found.append(f"{prefix}{name} is not a parameter; {where} has {', '.join(known)}{hint}")
            missing = [other for other in missing if other != names.nearest(key, missing)]
    return found + [f"{prefix}{key} is missing from params.yaml" for key in missing]


def _value(key: str, field: Field, wanted: Any, value: Any) -> Any:
    """`value` as the wanted type, in range."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
    fits = {
        bool: isinstance(value, bool),
        int: number and isinstance(value, int),
        float: number and abs(value) <= sys.float_info.max,  # neither nan nor inf is
        str: isinstance(value, str),
        str | None: value is None or isinstance(value, str) and value != "",
        tuple[str, ...]: texts,
        tuple[Lora, ...]: texts,
    }
    if not fits[wanted]:
        raise ValueError(f"{key} must be {TYPE_NAMES[wanted]}, got {_shown(value)}")
    rules = field.metadata
    least, above, most = (rules.get(rule) for rule in ("at_least", "above", "at_most"))
    if most is None and wanted is int:
        most = LARGEST
    if least is not None and (value < least or value == 0 and math.copysign(1, value) < 0):
        raise ValueError(f"{key} must be at least {least}, got {_shown(value)}")
    if above is not None and value <= above:
        raise ValueError(f"{key} must be above {above}, got {_shown(value)}")
    if most is not None and value > most:
        raise ValueError(f"{key} must be at most {most}, got {_shown(value)}")
    if value is not None and "pattern" in rules and not re.fullmatch(rules["pattern"], value):
        raise ValueError(f"{key} must {rules['rule']}, got {value!r}")
    if wanted == tuple[Lora, ...]:
        return _loras(value)
    return tuple(value) if wanted == tuple[str, ...] else wanted(value) if wanted in (int, float) else value


def _loras(texts: list[str]) -> tuple[Lora, ...]:
    require_all(partial(styles.parse, text) for text in texts)
    return tuple(map(styles.parse, texts))


def _shown(value: Any) -> str:
    """A value as a message shows it; Python refuses to write out an integer of thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)
