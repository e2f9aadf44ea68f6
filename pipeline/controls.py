"""The adapters that only the comparison needs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from pipeline import names
from pipeline.jobs import Job, Recorded, Settings
from pipeline.params import Params
from pipeline.partition import PHASES

OFFICIAL: dict[str, Any] = {
    "objective": "flow",
    "rank": 16,
    "alpha": 64.0,
    "targets": "attention",
    "batch": 1,
    "learning_rate": 5e-4,
    "train_steps": 60,
}
"""The settings of the published FLUX recipe, arXiv 2512.02899; it trains on one sample."""


def single(params: Params, recorded: Recorded) -> list[Job]:
    """One adapter for all student steps, with both phases' train steps and the mean of their learning rates."""
    settings = replace(
        Settings.of(params.training, params.train_slow),
        train_steps=params.train_slow.train_steps + params.train_fast.train_steps,
        learning_rate=(params.train_slow.learning_rate + params.train_fast.learning_rate) / 2,
        seed=params.train_controls.seed,
    )
    steps, anchored = recorded.steps(*PHASES)
    return [Job("single", steps, settings, params.teacher.guidance_scale, params.student.true_cfg_scale, anchored)]


def official(params: Params, recorded: Recorded) -> list[Job]:
    """The pair that the paper's objective and settings give from one sample, on the same student steps."""
    shared = replace(Settings.of(params.training, params.train_slow), **OFFICIAL)
    return [
        Job(
            f"official_{phase}",
            recorded.steps(phase)[0],
            replace(shared, seed=params.train_controls.seed + i),
            params.teacher.guidance_scale,
            params.student.true_cfg_scale,
            trajectories=1,
        )
        for i, phase in enumerate(PHASES)
    ]


ARMS: dict[str, Callable[[Params, Recorded], list[Job]]] = {"single": single, "official": official}


def check(arms: Sequence[str]) -> None:
    """Raises ValueError unless each of these arms is one that adapters are trained for."""
    for arm in arms:
        names.check("train_controls.arms", arm, ARMS, "be among")


def jobs(params: Params, recorded: Recorded) -> list[Job]:
    """The trainings of the arms that params.train_controls names, in its order.

    Raises:
        ValueError: An arm is unknown.
    """
    check(params.train_controls.arms)
    return [job for arm in params.train_controls.arms for job in ARMS[arm](params, recorded)]
