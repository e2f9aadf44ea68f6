"""What is compared: every arm is a way to spend forwards on the same prompts and noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.evaluation.recipes import FREE, SWAPS, Conditions, Recipe, check_free, check_swaps, recipes
from pipeline.flow.guidance import ASKED, evaluations, forwards
from pipeline.flow.sampling import StepPlan, fixed_plan
from pipeline.training.rivals import RIVALS, StudentStep, chosen


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to make an image.

    Attributes:
        name: Key in metrics.json.
        title: The arm in a few words.
        question: What comparing it with the teacher or the student answers.
        plan: The noise levels, and the adapter of each step.
        true_cfg_scale: 1 is off.
        guidance_scale: Embedded guidance; None = the teacher's.
    """

    name: str
    title: str
    question: str
    plan: StepPlan
    true_cfg_scale: float
    guidance_scale: float | None = None

    @property
    def steps(self) -> int:
        """Euler steps per image."""
        return len(self.plan.adapters)

    @property
    def nfe(self) -> int:
        """Forwards per image: a step that asks for guidance takes two."""
        return evaluations(self.plan.guidance, self.steps, self.true_cfg_scale)

    @property
    def workload(self) -> tuple[tuple[int, ...], tuple[int | None, ...]]:
        """What the arm's cost depends on: each step's forwards, and its adapter, numbered as they appear.

        The solver is not in it: its few sums are nothing beside a forward.
        """
        places: dict[str | None, int] = {
            name: place for place, name in enumerate(dict.fromkeys(filter(None, self.plan.adapters)))
        }
        modes = self.plan.guidance or (ASKED,) * self.steps
        each = tuple(evaluations((mode,), 1, self.true_cfg_scale) for mode in modes)
        return each, tuple(places.get(name) for name in self.plan.adapters)

    @property
    def shown(self) -> ShownArm:
        """What scores, tables and the report need of the arm."""
        return ShownArm(self.name, self.steps, self.nfe, self.title, self.question)


@dataclass(frozen=True)
class ShownArm:
    """An arm as scores, tables and the report show it."""

    name: str
    steps: int
    nfe: int
    title: str
    question: str


def build(conditions: Conditions) -> list[Arm]:
    """The arms of an evaluation, in the order of `recipes`, without those that are not asked for.

    A student that is no pair has no swaps.

    Raises:
        ValueError: If a rival, a free arm or a swap is unknown.
    """
    check_free(conditions.free)
    check_swaps(conditions.swaps)
    swaps = conditions.swaps if conditions.is_pair else ()
    optional = {*(recipe.name for recipe in (*FREE, *SWAPS)), *RIVALS}
    left_out = optional - {*chosen(conditions.rivals), *conditions.free, *swaps}
    return [_arm(recipe, conditions) for recipe in recipes() if recipe.name not in left_out]


def student_steps(plan: StepPlan) -> list[StudentStep]:
    """The steps of the student's own plan."""
    levels = plan.sigmas.tolist()[:-1]
    return [
        StudentStep(number=number, sigma=sigma, phase=phase or "")
        for number, (sigma, phase) in enumerate(zip(levels, plan.adapters, strict=True))
    ]


def _arm(recipe: Recipe, conditions: Conditions) -> Arm:
    scale = recipe.scale(conditions)
    if recipe.levels is None:
        plan = conditions.student
        if recipe.adapter is not None:
            plan = replace(plan, adapters=tuple(map(recipe.adapter, student_steps(plan))))
        plan = replace(plan, solver=recipe.solver or plan.solver)
    else:
        plan = fixed_plan(conditions.schedule.sigmas(recipe.levels(conditions)))
        modes = tuple(recipe.modes(conditions)) if recipe.modes and forwards(scale) > 1 else None
        plan = replace(plan, solver=recipe.solver or plan.solver, guidance=modes)
    return Arm(name=recipe.name, title=recipe.title, question=recipe.question, plan=plan, true_cfg_scale=scale)
