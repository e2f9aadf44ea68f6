"""params.yaml as frozen dataclasses, one per section; loading refuses a wrong key, type or range."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_type_hints

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pipeline import rival_params
from pipeline.artifacts import read_text
from pipeline.faults import Faults, RightValues, refusals
from pipeline.param_checks import check_section, number, text, wrong_keys
from pipeline.styles import Lora

if TYPE_CHECKING:
    from pipeline.backbones.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class TeacherParams:
    """The model that the student follows, and how this model is run."""

    path: str = text(r".+", "name a folder")
    family: str = text(r".+", "name a family")
    hub: str | None = text(r"[^/@\s]+/[^/@\s]+@[^/@\s]+", "be owner/name@revision or null")
    loras: tuple[Lora, ...]
    dtype: str = text(r"fp32|bf16", "be fp32 or bf16")
    quantization: str = text(r"none|int8|fp8|nf4", "be none, int8, fp8 or nf4")
    max_sequence_length: int = number(at_least=1, at_most=512)
    height: int = number(at_least=16)
    width: int = number(at_least=16)
    steps: int = number(at_least=2, at_most=1000)
    true_cfg_scale: float = number(at_least=1)
    guidance_scale: float = number(at_least=0)
    negative_prompt: str

    @property
    def base(self) -> Teacher:
        """The model as `backbones.load` takes it."""
        from pipeline.backbones.teacher import Teacher  # imports torch, which the command line does without

        return Teacher(path=Path(self.path), dtype=self.dtype, quantization=self.quantization, loras=self.loras)


@dataclass(frozen=True, kw_only=True)
class TrajectoriesParams:
    """Which runs of the teacher are recorded, and how."""

    prompts_file: str | None
    prompts: int = number(at_least=1)
    seeds_per_prompt: int = number(at_least=1)
    seed: int = number(at_least=0)
    shard_size: int = number(at_least=1)
    steps: int = number(at_least=1)
    precision: str = text(r"bf16|fp32", "be bf16 or fp32")


@dataclass(frozen=True, kw_only=True)
class AnchorsParams:
    """Other prompts, for which the student is trained to follow the guided base."""

    prompts_file: str | None
    prompts: int = number(at_least=0)
    seed: int = number(at_least=0)


@dataclass(frozen=True, kw_only=True)
class PartitionParams:
    """How the path is split."""

    rule: str = text(r".+", "name a rule")
    slow_steps: int = number(at_least=1)
    fast_steps: int = number(at_least=1)
    threshold_u: float = number(above=0, at_most=1)


@dataclass(frozen=True, kw_only=True)
class TrainingParams:
    """The settings that both phases' trainings share."""

    objective: str = text(r".+", "name an objective")
    rank: int = number(at_least=1)
    alpha: float = number(above=0)
    targets: str = text(r".+", "name a set of modules")
    batch: int = number(at_least=1)
    anchor_batch: int = number(at_least=1)
    precision: str = text(r"bf16|fp32", "be bf16 or fp32")


@dataclass(frozen=True, kw_only=True)
class PhaseParams:
    """One phase's own training."""

    learning_rate: float = number(above=0, at_most=1)
    train_steps: int = number(at_least=1)
    seed: int = number(at_least=0)


@dataclass(frozen=True, kw_only=True)
class ControlsParams:
    """The adapters that only the comparison needs."""

    arms: tuple[str, ...]
    seed: int = number(at_least=0)


@dataclass(frozen=True, kw_only=True)
class OfficialParams:
    """The paper's own training, one of train_controls.arms."""

    objective: str = text(r".+", "name an objective")
    rank: int = number(at_least=1)
    alpha: float = number(above=0)
    targets: str = text(r".+", "name a set of modules")
    batch: int = number(at_least=1)
    learning_rate: float = number(above=0, at_most=1)
    train_steps: int = number(at_least=1)
    samples: int = number(at_least=1)


@dataclass(frozen=True, kw_only=True)
class StudentParams:
    """How the student is run."""

    true_cfg_scale: float = number(at_least=1)
    solver: str = text(r".+", "name a solver")


@dataclass(frozen=True, kw_only=True)
class EvaluationParams:
    """What is measured, on how many images."""

    prompts_file: str | None
    prompts: int = number(at_least=2)
    seed: int = number(at_least=0)
    batch: int = number(at_least=1)
    free: tuple[str, ...]
    swaps: tuple[str, ...]
    diversity_prompts: int = number(at_least=1)
    diversity_seeds: int = number(at_least=2)
    latency_repeats: int = number(at_least=1)
    bootstrap: int = number(at_least=100)
    grid_prompts: int = number(at_least=1)


@dataclass(frozen=True, kw_only=True)
class RegisterParams:
    """The name under which a bundle is registered, and the retention that a promotion requires."""

    name: str = text(r"(?=.*\S)[^./:][^/:]{0,249}", "be at most 250 letters without / and :, the first no dot")
    min_retention: float = number(at_least=0, at_most=2)


@dataclass(frozen=True, kw_only=True)
class RuntimeParams:
    """Knobs that change no result."""

    device: str = text(r"auto|cpu|cuda(:\d{1,2})?", "be auto, cpu or cuda")
    threads: int = number(at_least=0, at_most=4096)
    checkpoint_every: int = number(at_least=1)
    gradient_checkpointing: bool
    offload: bool
    cache_limit_gb: float = number(at_least=0)


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
    rivals: Mapping[str, Any]
    """As the file has them; `rival_params` gives them as dataclasses."""
    register: RegisterParams
    runtime: RuntimeParams

    @property
    def published(self) -> dict[str, rival_params.Published]:
        """The published rivals of the teacher, by name."""
        return rival_params.published(self.rivals, self.teacher.hub)


OF_ENTRIES = {"rivals": rival_params.check}
"""Sections whose keys are names of one's own."""


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
        written = read_text(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: run this in the root of the project") from error
    try:
        return YAML(typ="safe", pure=True).load(written)  # DVC's own parser: 1e-3 is a number in both
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


def to_dict(params: Params) -> dict[str, Any]:
    """The content of a parameter file with these values, as nested dicts: `from_dict` reads it back."""
    return {section: {key: _written(value) for key, value in own.items()} for section, own in _sections(params).items()}


def sift(content: Any) -> tuple[Params, list[str]]:
    """The valid values of a parameter file's content, and one sentence per fault."""
    sections = get_type_hints(Params)
    found, values = wrong_keys("params.yaml", sections, content), {}
    for name, cls in sections.items():
        if isinstance(content, dict) and name in content:
            check = OF_ENTRIES.get(name) or partial(check_section, name, cls)
            values[name], wrong = check(content[name])
            found += wrong
    params = cast(Params, RightValues(values)) if found else Params(**values)
    return params, found + refusals([partial(check_steps, params)])


def check_steps(params: Params) -> None:
    """Raises ValueError where the recorded steps do not divide the teacher's, or the student has more than recorded."""
    steps, recorded = params.teacher.steps, params.trajectories.steps
    if steps % recorded:
        raise ValueError(f"trajectories.steps must divide teacher.steps = {steps}, got {recorded}")
    chosen = params.partition.slow_steps + params.partition.fast_steps
    if chosen > recorded:
        raise ValueError(
            f"partition.slow_steps + fast_steps must be at most the {recorded} recorded steps, got {chosen}"
        )


def _sections(params: Params) -> dict[str, Mapping[str, Any]]:
    """The fields of every section; `rivals` is one already."""
    return {name: own if isinstance(own, Mapping) else vars(own) for name, own in vars(params).items()}


def _written(value: Any) -> Any:
    """A value as the file has it: a list for a tuple, FILE or FILE:WEIGHT for a LoRA."""
    if isinstance(value, Lora):
        return value.file if value.weight == 1 else f"{value.file}:{value.weight}"
    return [_written(item) for item in value] if isinstance(value, tuple) else deepcopy(value)
