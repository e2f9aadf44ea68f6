"""The pair's rivals that need a training of their own: a new rival is an entry of `RIVALS`, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline import names
from pipeline.params import Params
from pipeline.partition import PHASES
from pipeline.training.jobs import Job, TrainingSettings

if TYPE_CHECKING:
    from pipeline.training.data import TrainingData


@dataclass(frozen=True, kw_only=True)
class Rival:
    """One choice of train_controls.arms."""

    title: str
    """The arm in a few words."""
    question: str
    """What comparing it with the student answers."""
    jobs: Callable[[Params, TrainingData], list[Job]]
    """The rival's adapters to train."""
    adapters: tuple[str, str]
    """The jobs whose adapters are active in the student's slow and in its fast steps, by name."""


def single(params: Params, data: TrainingData) -> list[Job]:
    """One adapter for all student steps, with both phases' train steps and the mean of their learning rates."""
    settings = replace(
        TrainingSettings.of(params.training, params.train_slow),
        train_steps=params.train_slow.train_steps + params.train_fast.train_steps,
        learning_rate=(params.train_slow.learning_rate + params.train_fast.learning_rate) / 2,
        seed=params.train_controls.seed,
    )
    steps, anchored = data.steps(*PHASES)
    return [
        Job(
            name="single",
            steps=steps,
            settings=settings,
            guidance_scale=params.teacher.guidance_scale,
            true_cfg_scale=params.student.true_cfg_scale,
            anchored=anchored,
        )
    ]


def official(params: Params, data: TrainingData) -> list[Job]:
    """The pair that the paper's objective and settings give from few samples, on the same student steps."""
    paper = params.official
    return [
        Job(
            name=f"official_{phase}",
            steps=data.steps(phase)[0],
            settings=TrainingSettings(
                objective=paper.objective,
                rank=paper.rank,
                alpha=paper.alpha,
                targets=paper.targets,
                batch=paper.batch,
                anchor_batch=params.training.anchor_batch,
                precision=params.training.precision,
                learning_rate=paper.learning_rate,
                train_steps=paper.train_steps,
                seed=params.train_controls.seed + i,
            ),
            guidance_scale=params.teacher.guidance_scale,
            true_cfg_scale=params.student.true_cfg_scale,
            trajectories=paper.samples,
            section="official",
        )
        for i, phase in enumerate(PHASES)
    ]


RIVALS: dict[str, Rival] = {
    "single": Rival(
        title="One adapter",
        question="Does the split matter, or is one adapter with the same total budget as good?",
        jobs=single,
        adapters=("single", "single"),
    ),
    "official": Rival(
        title="Official objective",
        question="What the paper's recipe gives here: its objective and settings, one sample.",
        jobs=official,
        adapters=("official_slow", "official_fast"),
    ),
}


def chosen(wanted: Sequence[str]) -> dict[str, Rival]:
    """The rivals of these names, in their order.

    Raises:
        ValueError: A name is not in the table.
    """
    for name in wanted:
        names.check("train_controls.arms", name, RIVALS, "be among")
    return {name: RIVALS[name] for name in wanted}


def jobs(params: Params, data: TrainingData) -> list[Job]:
    """The trainings of the rivals that params.train_controls names; raises as `chosen` does."""
    return [job for rival in chosen(params.train_controls.arms).values() for job in rival.jobs(params, data)]
