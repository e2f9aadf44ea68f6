"""Looks up, in seconds, every name, file and pair of values in params.yaml that a stage would refuse hours later.

This module has no rules of its own: each check calls the function with which the stage itself refuses a value.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline import adapters, backbones, names, objectives, params, partition, prompts, rival_params
from pipeline.backbones import fusing
from pipeline.backbones.base import Backbone
from pipeline.evaluation import published, recipes
from pipeline.faults import Faults, WrongValue, refusals, require_all
from pipeline.flow.schedule import Schedule
from pipeline.flow.solvers import TRAINABLE
from pipeline.params import Params
from pipeline.recording import anchors
from pipeline.training import rivals

if TYPE_CHECKING:
    from pipeline.backbones.stock import StockBackbone

PASSED = {"params.yaml": "valid"}
"""The output of the stage: the same bytes for all parameters, so that this file makes no later stage stale."""


def load(path: str | Path = "params.yaml") -> Params:
    """Reads a parameter file, and looks up everything that the file names.

    Raises:
        ValueError: The file is missing or no YAML.
        Faults: Every fault, one sentence each.
    """
    values, found = params.sift(params.read(path))
    teacher = _Teacher(values)
    found += refusals(partial(check, values, teacher) for check in CHECKS)
    if found:
        raise Faults(dict.fromkeys(found))
    return values


class _Teacher:
    """The teacher's folder without its weights. Each property raises as `backbones.load` does, at every access."""

    def __init__(self, values: Params):
        self._values = values

    @cached_property
    def path(self) -> Path:
        return Path(self._values.teacher.path)

    @cached_property
    def family(self) -> type[Backbone]:
        try:
            return backbones.family(self.path)
        except ValueError as error:
            if self.path.is_dir() or not self._values.teacher.hub:
                raise
            raise ValueError(f"{error}; `glance fetch` gets {self._values.teacher.hub}") from error

    @cached_property
    def backbone(self) -> StockBackbone:
        _ = self.family  # refuses a missing folder, and says how to get the folder
        return backbones.load(self.path, "cpu", parts=())

    @cached_property
    def schedule(self) -> Schedule:
        return self.backbone.schedule(self._values.teacher.height, self._values.teacher.width)


def _rule(values: Params, teacher: _Teacher) -> None:
    partition.check(values.partition.rule)


def _steps(values: Params, teacher: _Teacher) -> None:
    params.check_steps(values)
    try:
        schedule = teacher.schedule
    except (ValueError, OSError, WrongValue):  # another check reports it; only a stretched schedule matters here
        schedule = Schedule(mu=0.0)
    partition.compute(values, schedule)


def _objective(values: Params, teacher: _Teacher) -> None:
    require_all(
        (
            lambda: objectives.check("training.objective", values.training.objective),
            lambda: objectives.check("official.objective", values.official.objective),
        )
    )


def _targets(values: Params, teacher: _Teacher) -> None:
    require_all(
        (
            lambda: adapters.check_targets(values.training.targets, teacher.family),
            lambda: adapters.check_targets(values.official.targets, teacher.family, "official.targets"),
        )
    )


def _controls(values: Params, teacher: _Teacher) -> None:
    require_all(partial(rivals.chosen, [name]) for name in values.train_controls.arms)


def _solver(values: Params, teacher: _Teacher) -> None:
    names.check("student.solver", values.student.solver, TRAINABLE)


def _free(values: Params, teacher: _Teacher) -> None:
    require_all(partial(recipes.check_free, [name]) for name in values.evaluation.free)


def _swaps(values: Params, teacher: _Teacher) -> None:
    require_all(partial(recipes.check_swaps, [name]) for name in values.evaluation.swaps)


def _rivals(values: Params, teacher: _Teacher) -> None:
    every = rival_params.published(values.rivals, values.teacher.hub)
    require_all(
        (
            *(partial(published.check_name, name) for name in values.rivals),
            *(lambda n=name: published.arm(n, every[n], teacher.schedule) for name in every),
            *(lambda f=file: published.read(f, 1.0, teacher.backbone) for file, _ in published.files(every).values()),
        )
    )


def _recorded_prompts(values: Params, teacher: _Teacher) -> None:
    settings = values.trajectories
    prompts.load_prompts(settings.prompts_file, settings.prompts, "train", settings.seed, "trajectories")


def _anchors(values: Params, teacher: _Teacher) -> None:
    settings = values.anchors
    if settings.prompts:
        anchors.texts(settings, teacher.backbone.words() if settings.prompts_file is None else ())


def _evaluated_prompts(values: Params, teacher: _Teacher) -> None:
    settings = values.evaluation
    prompts.load_prompts(settings.prompts_file, settings.prompts, "evaluation", settings.seed, "evaluation")


def _device(values: Params, teacher: _Teacher) -> None:
    backbones.resolve_device(values.runtime.device)


def _quantization(values: Params, teacher: _Teacher) -> None:
    if values.teacher.quantization != "none":
        from pipeline.backbones import quantization  # imports diffusers, as a family does

        try:
            device = backbones.resolve_device(values.runtime.device)
        except ValueError:
            device = torch.device("cuda")  # another check reports the missing device
        quantization.require(values.teacher.quantization, device)


def _family(values: Params, teacher: _Teacher) -> None:
    found = teacher.family.family
    if values.teacher.family != found:
        raise ValueError(f"teacher.family must be {found} for {teacher.path}, got {values.teacher.family!r}")


def _folder(values: Params, teacher: _Teacher) -> None:
    teacher.backbone.check_files(backbones.PARTS)


def _pixels(values: Params, teacher: _Teacher) -> None:
    grid, size = teacher.backbone.grid, teacher.backbone.pixels_per_token
    height, width = values.teacher.height, values.teacher.width
    require_all((partial(grid, height, size), partial(grid, size, width), lambda: teacher.schedule))


def _loras(values: Params, teacher: _Teacher) -> None:
    settings = values.teacher
    require_all(partial(fusing.read, lora, teacher.backbone, settings.quantization) for lora in settings.loras)


CHECKS: tuple[Callable[[Params, _Teacher], None], ...] = (
    _family,
    _folder,
    _loras,
    _device,
    _quantization,
    _pixels,
    _recorded_prompts,
    _rule,
    _steps,
    _anchors,
    _objective,
    _targets,
    _controls,
    _solver,
    _free,
    _swaps,
    _evaluated_prompts,
    _rivals,
)
"""In the order of params.yaml. Every check runs, whatever the others refuse."""
