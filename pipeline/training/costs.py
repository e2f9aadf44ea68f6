"""What a training costs, in forward equivalents: a forward counts 1, a backward 2."""

from collections.abc import Callable

from pipeline.flow.guidance import forwards
from pipeline.objectives import OBJECTIVES
from pipeline.params import Params
from pipeline.training.jobs import Job

BACKWARD = 2  # forward equivalents of a backward
CRITIC_STEPS = 5  # steps of the critic for each of the generator: Yin et al., arXiv 2405.14867


def pair_budget(params: Params) -> int:
    """Forward equivalents of the pair's two trainings, without anchors."""
    rows = params.training.batch * (params.train_slow.train_steps + params.train_fast.train_steps)
    return rows * (1 + BACKWARD) * forwards(params.student.true_cfg_scale)


def sample_cost(job: Job, params: Params) -> float:
    """Forward equivalents of one row of the batch in one train step of a job, on average."""
    return COSTS[job.trainer](job, params)


def _objective(job: Job, params: Params) -> float:
    trained, frozen = OBJECTIVES[job.settings.objective].forwards(len(job.steps))
    return (trained * (1 + BACKWARD) + frozen) * forwards(job.true_cfg_scale)


def _dmd2(job: Job, params: Params) -> float:
    """The generator takes (K - 1) / 2 steps without gradient on average, before the call that gives x_0."""
    student, rolled = forwards(job.true_cfg_scale), (len(job.steps) - 1) / 2
    critic_step = (rolled + 1) * student + (1 + BACKWARD)
    generator_step = (rolled + 1 + BACKWARD) * student + 1 + forwards(params.teacher.true_cfg_scale)
    return CRITIC_STEPS * critic_step + generator_step


def _pdd(job: Job, params: Params) -> float:
    """One forward with gradient; the output layer's share of it is small."""
    return 1 + BACKWARD


COSTS: dict[str, Callable[[Job, Params], float]] = {"objective": _objective, "dmd2": _dmd2, "pdd": _pdd}
"""By `Job.trainer`."""
