"""params.yaml as frozen dataclasses; a wrong key, type or range is refused here, once."""

import math
import re
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import loras
from pipeline.loras import Lora

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


@dataclass(frozen=True)
class TeacherParams:
    """The model that is followed, and how it is run."""

    path: str = _text(r".+", "name a folder")
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


@dataclass(frozen=True)
class TrajectoriesParams:
    """What of the teacher is recorded."""

    prompts_file: str | None
    prompts: int = _number(at_least=1)
    seeds_per_prompt: int = _number(at_least=1)
    seed: int = _number(at_least=0)
    shard_size: int = _number(at_least=1)
    stride: int = _number(at_least=1)
    precision: str = _text(r"bf16|fp32", "be bf16 or fp32")


@dataclass(frozen=True)
class AnchorsParams:
    """Other prompts, under which the student is kept at the guided base."""

    prompts_file: str | None
    prompts: int = _number(at_least=0)
    seed: int = _number(at_least=0)


@dataclass(frozen=True)
class PartitionParams:
    """How the path is split."""

    rule: str = _text(r".+", "name a rule")
    slow_steps: int = _number(at_least=1)
    fast_steps: int = _number(at_least=1)
    threshold_u: float = _number(above=0, at_most=1)


@dataclass(frozen=True)
class TrainingParams:
    """What both phases' trainings share."""

    objective: str = _text(r".+", "name an objective")
    rank: int = _number(at_least=1)
    alpha: float = _number(above=0)
    targets: str = _text(r".+", "name a set of modules")
    batch: int = _number(at_least=1)
    anchor_batch: int = _number(at_least=1)
    precision: str = _text(r"bf16|fp32", "be bf16 or fp32")


@dataclass(frozen=True)
class PhaseParams:
    """One phase's own training."""

    learning_rate: float = _number(above=0, at_most=1)
    train_steps: int = _number(at_least=1)
    seed: int = _number(at_least=0)


@dataclass(frozen=True)
class ControlsParams:
    """The adapters that only the comparison needs."""

    arms: tuple[str, ...]
    seed: int = _number(at_least=0)


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class StudentParams:
    """How the student is run."""

    true_cfg_scale: float = _number(at_least=1)


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class RegisterParams:
    """Under what name a bundle is registered, and what a promotion asks of it."""

    name: str = _text(r"[^/:]+", "be a name without / and :")
    min_retention: float = _number(at_least=0, at_most=2)


@dataclass(frozen=True)
class RuntimeParams:
    """Knobs that change no result."""

    device: str = _text(r"auto|cpu|cuda(:\d+)?", "be auto, cpu or cuda")
    threads: int = _number(at_least=0)
    checkpoint_every: int = _number(at_least=1)
    gradient_checkpointing: bool
    offload: bool


@dataclass(frozen=True)
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


def load(path: str | Path = "params.yaml") -> Params:
    """Reads a parameter file.

    Raises:
        ValueError: The file is missing or no YAML; a key is unknown or missing; a value has a wrong type or is out of
            its range. The message names the key, the rule and the value.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: run this in the root of the project") from error
    try:
        content = YAML(typ="safe", pure=True).load(text)  # DVC's own parser: 1e-3 is a number in both
    except YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    return from_dict(content)


def from_dict(content: Any) -> Params:
    """Checks the sections of a parameter file, as nested dicts; raises as `load` does."""
    sections = get_type_hints(Params)
    _check_keys("params.yaml", sections, content)
    params = Params(**{name: _section(name, cls, content[name]) for name, cls in sections.items()})
    steps, stride = params.teacher.steps, params.trajectories.stride
    if steps % stride:
        raise ValueError(f"trajectories.stride must divide teacher.steps = {steps}, got {stride}")
    chosen, most = params.partition.slow_steps + params.partition.fast_steps, steps // stride
    if chosen > most:
        raise ValueError(f"partition.slow_steps + fast_steps must be at most the {most} recorded steps, got {chosen}")
    return params


def _section(section: str, cls: type, content: Any) -> Any:
    types = get_type_hints(cls)
    _check_keys(section, types, content)
    return cls(**{f.name: _value(f"{section}.{f.name}", f, types[f.name], content[f.name]) for f in fields(cls)})


def _check_keys(where: str, known: dict[str, Any], content: Any) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{where} must hold the keys {', '.join(known)}, got {content!r}")
    prefix = "" if where == "params.yaml" else f"{where}."
    for key in content:
        if key not in known:
            raise ValueError(f"{prefix}{key} is not a parameter; {where} has {', '.join(known)}")
    for key in known:
        if key not in content:
            raise ValueError(f"{prefix}{key} is missing from params.yaml")


def _value(key: str, field: Field, wanted: Any, value: Any) -> Any:
    """`value` as the wanted type, in range."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
    fits = {
        bool: isinstance(value, bool),
        int: number and isinstance(value, int),
        float: number and math.isfinite(value),
        str: isinstance(value, str),
        str | None: value is None or isinstance(value, str) and value != "",
        tuple[str, ...]: texts,
        tuple[Lora, ...]: texts,
    }
    if not fits[wanted]:
        raise ValueError(f"{key} must be {TYPE_NAMES[wanted]}, got {value!r}")
    rules = field.metadata
    if rules.get("at_least") is not None and value < rules["at_least"]:
        raise ValueError(f"{key} must be at least {rules['at_least']}, got {value}")
    if rules.get("above") is not None and value <= rules["above"]:
        raise ValueError(f"{key} must be above {rules['above']}, got {value}")
    if rules.get("at_most") is not None and value > rules["at_most"]:
        raise ValueError(f"{key} must be at most {rules['at_most']}, got {value}")
    if value is not None and "pattern" in rules and not re.fullmatch(rules["pattern"], value):
        raise ValueError(f"{key} must {rules['rule']}, got {value!r}")
    if wanted == tuple[Lora, ...]:
        return tuple(map(loras.parse, value))
    return tuple(value) if wanted == tuple[str, ...] else wanted(value) if wanted in (int, float) else value
