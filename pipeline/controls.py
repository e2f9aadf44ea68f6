"""The adapters that only the comparison needs."""

from collections.abc import Callable
from dataclasses import replace

from pipeline.jobs import Job, Settings
from pipeline.params import Params
from pipeline.partition import PHASES
from pipeline.training_data import TrainingData

OFFICIAL = {
    "objective": "flow",
    "rank": 16,
    "alpha": 64.0,
    "targets": "attention",
    "batch": 1,
    "learning_rate": 5e-4,
    "train_steps": 60,
}
"""The settings of the published FLUX recipe, arXiv 2512.02899; it trains on one sample."""


def single(params: Params, data: TrainingData) -> list[Job]:
    """One adapter for all student steps, with both phases' train steps and the mean of their learning rates."""
    settings = replace(
        Settings.of(params.training, params.train_slow),
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
    """The pair that the paper's objective and settings give from one sample, on the same student steps."""
    shared = replace(Settings.of(params.training, params.train_slow), **OFFICIAL)
    return [
        Job(
            name=f"official_{phase}",
            steps=data.steps(phase)[0],
            settings=replace(shared, seed=params.train_controls.seed + i),
            guidance_scale=params.teacher.guidance_scale,
            true_cfg_scale=params.student.true_cfg_scale,
            trajectories=1,
        )
        for i, phase in enumerate(PHASES)
    ]


ARMS: dict[str, Callable[[Params, TrainingData], list[Job]]] = {"single": single, "official": official}


def jobs(params: Params, data: TrainingData) -> list[Job]:
    """The trainings of the arms that params.train_controls names, in its order.

    Raises:
        ValueError: An arm is unknown.
    """
    for arm in params.train_controls.arms:
        if arm not in ARMS:
            raise ValueError(f"train_controls.arms must be among {', '.join(ARMS)}, got {arm!r}")
    return [job for arm in params.train_controls.arms for job in ARMS[arm](params, data)]
