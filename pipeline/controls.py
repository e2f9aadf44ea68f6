"""The adapters that only the comparison needs."""

from collections.abc import Callable
from dataclasses import replace

from pipeline import anchors
from pipeline.params import Params
from pipeline.partition import Partition
from pipeline.training import Job, Settings

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


def single(params: Params, partition: Partition) -> list[Job]:
    """One adapter for all student steps, with both phases' train steps and the mean of their learning rates."""
    settings = replace(
        Settings.of(params.training, params.train_slow),
        train_steps=params.train_slow.train_steps + params.train_fast.train_steps,
        learning_rate=(params.train_slow.learning_rate + params.train_fast.learning_rate) / 2,
        seed=params.train_controls.seed,
    )
    steps = (*partition.slow.pairs, *partition.fast.pairs)
    anchored = tuple(step for phase in partition.phases for step in anchors.student_steps(partition, phase))
    guidance = params.teacher.guidance_scale, params.student.true_cfg_scale
    return [Job("single", steps, settings, *guidance, anchored)]


def official(params: Params, partition: Partition) -> list[Job]:
    """The pair that the paper's objective and settings give from one sample, on the same student steps."""
    shared = replace(Settings.of(params.training, params.train_slow), **OFFICIAL)
    return [
        Job(
            f"official_{name}",
            phase.pairs,
            replace(shared, seed=params.train_controls.seed + i),
            params.teacher.guidance_scale,
            params.student.true_cfg_scale,
            trajectories=1,
        )
        for i, (name, phase) in enumerate(partition.phases.items())
    ]


ARMS: dict[str, Callable[[Params, Partition], list[Job]]] = {"single": single, "official": official}


def jobs(params: Params, partition: Partition) -> list[Job]:
    """The trainings of the arms that params.train_controls names, in its order.

    Raises:
        ValueError: An arm is unknown.
    """
    for arm in params.train_controls.arms:
        if arm not in ARMS:
            raise ValueError(f"train_controls.arms must be among {', '.join(ARMS)}, got {arm!r}")
    return [job for arm in params.train_controls.arms for job in ARMS[arm](params, partition)]
