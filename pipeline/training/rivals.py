"""The pair's rivals that need a training of their own: a new rival is an entry of `RIVALS`, and nothing else.

All but `official` have the budget of the pair in forward equivalents, see costs.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from pipeline import names
from pipeline.params import Params
from pipeline.partition import PHASES
from pipeline.training.costs import pair_budget, sample_cost
from pipeline.training.jobs import Job, TrainingSettings

if TYPE_CHECKING:
    from pipeline.training.data import TrainingData


@dataclass(frozen=True, kw_only=True)
class StudentStep:
    """A step of the student, as a rival chooses its adapter for it."""

    number: int
    """From 0."""
    sigma: float
    """Noise level at the start."""
    phase: str
    """The phase of the pair, "slow" or "fast"."""


@dataclass(frozen=True, kw_only=True)
class Rival:
    """One choice of train_controls.arms."""

    title: str
    """The arm in a few words."""
    question: str
    """What comparing it with the student answers."""
    jobs: Callable[[Params, TrainingData], list[Job]]
    """The trainings of the rival's adapters."""
    adapter: Callable[[StudentStep], str]
    """The trained adapter that is active in a student step, by name."""
    solver: str | None = None
    """The solver of the rival's steps, one of `solvers.SOLVERS`; None = the student's."""

    def adapters(self, steps: Sequence[StudentStep]) -> tuple[str, ...]:
        """The active adapter of each student step."""
        return tuple(map(self.adapter, steps))


def _whole_path(params: Params, data: TrainingData, name: str, objective: str | None = None) -> Job:
    """One adapter for all student steps, with the mean of the phases' learning rates and the pair's budget."""
    settings = replace(
        TrainingSettings.of(params.training, params.train_slow),
        learning_rate=(params.train_slow.learning_rate + params.train_fast.learning_rate) / 2,
        objective=objective or params.training.objective,
        seed=params.train_controls.seed,
    )
    steps, anchored = data.steps(*PHASES)
    job = Job(
        name=name,
        steps=steps,
        settings=settings,
        guidance_scale=params.teacher.guidance_scale,
        true_cfg_scale=params.student.true_cfg_scale,
        anchored=anchored,
        path=data.path,
        solver=params.student.solver,
    )
    return _at_budget(job, params)


def _at_budget(job: Job, params: Params, share: float = 1.0) -> Job:
    """The job with as many train steps as a share of the pair's budget pays for, at least one."""
    train_steps = max(1, round(share * pair_budget(params) / (job.settings.batch * sample_cost(job, params))))
    return replace(job, settings=replace(job.settings, train_steps=train_steps))


def _one_adapter(name: str, objective: str | None = None) -> Callable[[Params, TrainingData], list[Job]]:
    return lambda params, data: [_whole_path(params, data, name, objective)]


def _slower(job: Job) -> Job:
    """A tenth of the learning rate, for methods whose targets come from the student itself: they diverge otherwise."""
    return replace(job, settings=replace(job.settings, learning_rate=job.settings.learning_rate / 10))


def lcm(params: Params, data: TrainingData) -> list[Job]:
    """One adapter for all student steps by consistency distillation, at a tenth of the pair's learning rate."""
    return [_slower(_whole_path(params, data, "lcm", "consistency"))]


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
            path=data.path,
            solver=params.student.solver,
            trajectories=paper.samples,
            section="official",
        )
        for i, phase in enumerate(PHASES)
    ]


def dmd2(params: Params, data: TrainingData) -> list[Job]:
    """One adapter for all student steps by distribution matching, at a tenth of the pair's learning rate."""
    return [_at_budget(replace(_slower(_whole_path(params, data, "dmd2")), trainer="dmd2"), params)]


def pdd(params: Params, data: TrainingData) -> list[Job]:
    """A trunk for all student steps with an output layer for each, at the learning rate and the budget of the pair."""
    return [_at_budget(replace(_whole_path(params, data, "pdd"), trainer="pdd"), params)]


def expert_of(sigma: float, experts: int) -> int:
    """The expert, from 1, that owns a noise level: expert i owns ((i - 1) / n, i / n]."""
    return max(1, -int(-sigma * experts // 1))


def experts(count: int, params: Params, data: TrainingData) -> list[Job]:
    """Timestep Master's experts: `count` equal intervals of the timestep, an adapter for each that owns a step.

    The pair's budget is divided evenly among the experts. Only the fostering stage of arXiv 2503.07416: the assembling
    stage needs a module beside the LoRAs at inference.
    """
    whole = _whole_path(params, data, "", None)
    owners = [expert_of(float(data.trajectories.sigmas[start]), count) for start, _ in whole.steps]
    found: list[Job] = []
    for expert in sorted(set(owners), reverse=True):
        own = [i for i, owner in enumerate(owners) if owner == expert]
        job = replace(
            whole,
            name=f"tsm_{count}_{expert}",
            steps=tuple(whole.steps[i] for i in own),
            anchored=tuple(whole.anchored[i] for i in own if whole.anchored),
        )
        settings = replace(job.settings, seed=job.settings.seed + len(found))
        found.append(_at_budget(replace(job, settings=settings), params, 1 / len(set(owners))))
    return found


def _experts(count: int) -> Rival:
    return Rival(
        title=f"Timestep Master, {count} experts",
        question=f"Are {count} experts of equal intervals of the timestep better than a slow and a fast one?",
        jobs=partial(experts, count),
        adapter=lambda step: f"tsm_{count}_{expert_of(step.sigma, count)}",
    )


def always(name: str) -> Callable[[StudentStep], str]:
    """One adapter in every step."""
    return lambda step: name


def _lcm(title: str, question: str, solver: str) -> Rival:
    """One training, sampled in two ways."""
    return Rival(title=title, question=question, jobs=lcm, adapter=always("lcm"), solver=solver)


RIVALS: dict[str, Rival] = {
    "single": Rival(
        title="One adapter",
        question="Does the split matter, or is one adapter with the same total budget as good?",
        jobs=_one_adapter("single"),
        adapter=always("single"),
    ),
    "official": Rival(
        title="Official objective",
        question="What the paper's recipe gives here: its objective and settings, one sample.",
        jobs=official,
        adapter=lambda step: f"official_{step.phase}",
    ),
    "lcm": _lcm(
        "LCM, fresh noise",
        "Is consistency distillation at equal budget as good, sampled with fresh noise in each step?",
        "renoise",
    ),
    "lcm_euler": _lcm("LCM, Euler", "Is the adapter of consistency distillation better with Euler's steps?", "euler"),
    "direct": Rival(
        title="End to end",
        question="Is a loss at the end of all steps better than a target for each (Qwen-Image-Distill-LoRA's method)?",
        jobs=_one_adapter("direct", "rollout"),
        adapter=always("direct"),
        solver="euler",
    ),
    "dmd2": Rival(
        title="DMD2",
        question="Is matching the teacher's distribution better than following its path, at equal budget?",
        jobs=dmd2,
        adapter=always("dmd2"),
        solver="renoise",
    ),
    "pdd": Rival(
        title="PDD from the recording",
        question="Is a target for each recorded step, from one forward, better than one for each student step?",
        jobs=pdd,
        adapter=lambda step: f"pdd_{step.number}",
        solver="euler",
    ),
    "tsm_2": _experts(2),
    "tsm_4": _experts(4),
    "tsm_8": _experts(8),
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
    """The trainings of the rivals that params.train_controls names, each once; raises as `chosen` does."""
    every = [job for rival in chosen(params.train_controls.arms).values() for job in rival.jobs(params, data)]
    return list({job.name: job for job in every}.values())
