"""What is trained: the settings and the student steps of one adapter."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pipeline.params import Params, PhaseParams, TrainingParams

if TYPE_CHECKING:
    from pipeline.training.data import TrainingData

Step = tuple[int, int]
"""A student step: its start and its end in the steps of a recording."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How an adapter is trained; the names are those of params.yaml."""

    objective: str
    rank: int
    alpha: float
    targets: str
    batch: int
    anchor_batch: int
    precision: str
    learning_rate: float
    train_steps: int
    seed: int

    @classmethod
    def of(cls, training: TrainingParams, phase: PhaseParams) -> TrainingSettings:
        """The shared settings with one phase's own."""
        return cls(**asdict(training), **asdict(phase))


@dataclass(frozen=True, kw_only=True)
class Job:
    """One adapter to train: everything its bytes depend on, but for the teacher, the trajectories and the code."""

    name: str
    steps: tuple[Step, ...]
    """The student steps that the adapter serves, in recorded steps of the trajectories."""
    settings: TrainingSettings
    guidance_scale: float
    true_cfg_scale: float
    """The student's scale: above 1 the guided velocity is trained, at 1 the guidance is baked in."""
    anchored: tuple[Step, ...] = ()
    """The same student steps in recorded steps of the anchors; () = no anchors."""
    trajectories: int | None = None
    """How many trajectories to train on, counted from the first; None = all."""
    path: tuple[int, ...] = ()
    """Recorded steps at which all of the student's steps start, then at which the last one ends, length K + 1."""
    solver: str = "euler"
    """The student's solver, one of `solvers.TRAINABLE`."""
    trainer: str = "objective"
    """One of `trainers.TRAINERS`."""
    section: str = "training"
    """The section of params.yaml that names the objective and the targets, for messages."""


def of_phase(params: Params, data: TrainingData, phase: str) -> Job:
    """The adapter of one phase, "slow" or "fast". Raises as `TrainingData.steps` does."""
    steps, anchored = data.steps(phase)
    return Job(
        name=phase,
        steps=steps,
        settings=TrainingSettings.of(params.training, {"slow": params.train_slow, "fast": params.train_fast}[phase]),
        guidance_scale=params.teacher.guidance_scale,
        true_cfg_scale=params.student.true_cfg_scale,
        anchored=anchored,
        path=data.path,
        solver=params.student.solver,
    )
