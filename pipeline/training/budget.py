"""What a training costs, in forward equivalents of one row: a forward counts 1, a backward 2."""

from dataclasses import replace

from pipeline.flow.guidance import forwards
from pipeline.objectives import OBJECTIVES
from pipeline.params import Params
from pipeline.training.jobs import Job

BACKWARD = 2


def pair_budget(params: Params) -> int:
    """Forward equivalents of the pair's two trainings, without anchors."""
    rows = params.training.batch * (params.train_slow.train_steps + params.train_fast.train_steps)
    return rows * (1 + BACKWARD) * forwards(params.student.true_cfg_scale)


def sample_cost(job: Job) -> int:
    """Forward equivalents of one sample of a job that an objective trains."""
    trained, frozen = OBJECTIVES[job.settings.objective].forwards(len(job.steps))
    return (trained * (1 + BACKWARD) + frozen) * forwards(job.true_cfg_scale)


def at_budget(job: Job, budget: float) -> Job:
    """The job with as many train steps as the budget pays for, at least one."""
    train_steps = max(1, round(budget / (job.settings.batch * sample_cost(job))))
    return replace(job, settings=replace(job.settings, train_steps=train_steps))
