"""What is compared: every arm is a way to spend forwards on the same prompts and noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipeline import names
from pipeline.flow.guidance import forwards
from pipeline.flow.sampling import StepPlan, fixed_plan
from pipeline.flow.schedule import Schedule, base_levels
from pipeline.partition import PHASES
from pipeline.training.rivals import RIVALS, chosen

REFERENCE = "teacher"
PRODUCT = "student"


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What all arms of an evaluation are built from.

    Attributes:
        schedule: Base levels to sigmas, at the evaluated resolution.
        teacher_steps: Steps of the teacher.
        student: The student's own plan, with the adapters "slow" and "fast".
        teacher_scale: The teacher's true_cfg_scale.
        student_scale: The student's true_cfg_scale.
        rivals: The rivals that have adapters, by their names in `RIVALS`.
        swaps: Arms that use the pair's adapters in other phases, by name.
    """

    schedule: Schedule
    teacher_steps: int
    student: StepPlan
    teacher_scale: float
    student_scale: float
    rivals: tuple[str, ...]
    swaps: tuple[str, ...]

    @property
    def student_steps(self) -> int:
        """K, the student's steps."""
        return len(self.student.adapters)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to make an image.

    Attributes:
        name: Key in metrics.json.
        title: The arm in a few words.
        question: What comparing it with the teacher or the student answers.
        plan: The noise levels, and the adapter of each step.
        true_cfg_scale: 1 is off.
    """

    name: str
    title: str
    question: str
    plan: StepPlan
    true_cfg_scale: float

    @property
    def steps(self) -> int:
        """Euler steps per image."""
        return len(self.plan.adapters)

    @property
    def nfe(self) -> int:
        """Forwards per image: a guided step takes two."""
        return self.steps * forwards(self.true_cfg_scale)

    @property
    def workload(self) -> tuple[int, tuple[int | None, ...]]:
        """What the arm's cost depends on: forwards per step, and each step's adapter, numbered as they appear."""
        places: dict[str | None, int] = {
            name: place for place, name in enumerate(dict.fromkeys(filter(None, self.plan.adapters)))
        }
        return forwards(self.true_cfg_scale), tuple(places.get(name) for name in self.plan.adapters)


@dataclass(frozen=True)
class ShownArm:
    """An arm as scores, tables and the report show it; the title and the question are those of the arm's recipe."""

    name: str
    steps: int
    nfe: int

    @property
    def title(self) -> str:
        """The arm in a few words."""
        return self._recipe.title

    @property
    def question(self) -> str:
        """What comparing it with the teacher or the student answers."""
        return self._recipe.question

    @property
    def _recipe(self) -> Recipe:
        return next(recipe for recipe in recipes() if recipe.name == self.name)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an arm is built: its noise levels, its guidance and its adapters."""

    name: str
    title: str
    question: str
    scale: Callable[[Conditions], float]
    """The arm's true_cfg_scale."""
    levels: Callable[[Conditions], Sequence[float]] | None = None
    """Base levels of the bare backbone; None = the student's own plan, with adapters."""
    adapters: tuple[str, str] | None = None
    """The active adapters in the slow and in the fast steps of the student's plan."""


def _even(steps: Callable[[Conditions], int]) -> Callable[[Conditions], Sequence[float]]:
    """Evenly spaced base levels, as the stock pipelines have them for num_inference_steps."""
    return lambda conditions: base_levels(steps(conditions)).tolist()


def _equal_cost_steps(conditions: Conditions) -> int:
    """As many guided steps as the student's forwards pay for, at least one."""
    budget = conditions.student_steps * forwards(conditions.student_scale)
    return max(1, budget // forwards(conditions.teacher_scale))


def _teacher_scale(conditions: Conditions) -> float:
    return conditions.teacher_scale


def _student_scale(conditions: Conditions) -> float:
    return conditions.student_scale


BASES = (
    Recipe(
        name=REFERENCE,
        title="Teacher",
        question="The ceiling: all steps, guided.",
        levels=_even(lambda conditions: conditions.teacher_steps),
        scale=_teacher_scale,
    ),
    Recipe(
        name="base_guided",
        title="Base, guided",
        question=(
            "What anybody can do for free: fewer steps of the same model, guided, at twice the student's forwards."
        ),
        levels=_even(lambda conditions: conditions.student_steps),
        scale=_teacher_scale,
    ),
    Recipe(
        name="base_unguided",
        title="Base, unguided",
        question="The student's forwards, spent for free without guidance.",
        levels=_even(lambda conditions: conditions.student_steps),
        scale=lambda conditions: 1.0,
    ),
    Recipe(
        name="base_guided_equal_cost",
        title="Base, equal cost",
        question="The student's forwards, spent for free on half as many guided steps.",
        levels=_even(_equal_cost_steps),
        scale=_teacher_scale,
    ),
)
"""Arms of the bare backbone; every evaluation has them."""

STUDENT = Recipe(
    name=PRODUCT,
    title="Student",
    question="The product: slow and fast adapter.",
    scale=_student_scale,
    adapters=PHASES,
)

SWAPS = (
    Recipe(
        name="slow_only",
        title="Slow adapter only",
        question="Is the fast adapter needed, or would the slow one do in every step?",
        scale=_student_scale,
        adapters=("slow", "slow"),
    ),
    Recipe(
        name="fast_only",
        title="Fast adapter only",
        question="Is the slow adapter needed, or would the fast one do in every step?",
        scale=_student_scale,
        adapters=("fast", "fast"),
    ),
    Recipe(
        name="swapped",
        title="Swapped adapters",
        question="Did the two adapters learn different things?",
        scale=_student_scale,
        adapters=("fast", "slow"),
    ),
)
"""Arms with the pair's adapters in other phases: the choices of evaluation.swaps."""


def recipes() -> list[Recipe]:
    """Every possible arm, in the order of the tables; the rivals' arms run with the student's plan and scale."""
    rivals = [
        Recipe(name=name, title=rival.title, question=rival.question, scale=_student_scale, adapters=rival.adapters)
        for name, rival in RIVALS.items()
    ]
    return [*BASES, STUDENT, *SWAPS, *rivals]


def titles() -> dict[str, str]:
    """The title of every arm, by its name, in the order of the tables."""
    return {recipe.name: recipe.title for recipe in recipes()}


def build(conditions: Conditions) -> list[Arm]:
    """The arms of an evaluation, in the order of `recipes`, without the rivals and swaps that are not asked for.

    Raises:
        ValueError: If a rival or a swap is unknown.
    """
    check_swaps(conditions.swaps)
    left_out = {*(recipe.name for recipe in SWAPS), *RIVALS} - {*chosen(conditions.rivals), *conditions.swaps}
    return [_arm(recipe, conditions) for recipe in recipes() if recipe.name not in left_out]


def check_swaps(swaps: Sequence[str]) -> None:
    """Raises ValueError unless each name is that of an arm in `SWAPS`."""
    for name in swaps:
        names.check("evaluation.swaps", name, [recipe.name for recipe in SWAPS], "be among")


def _arm(recipe: Recipe, conditions: Conditions) -> Arm:
    if recipe.levels is None:
        acting: dict[str | None, str] = dict(zip(PHASES, recipe.adapters or (), strict=True))
        plan = replace(
            conditions.student, adapters=tuple(acting.get(name, name) for name in conditions.student.adapters)
        )
    else:
        plan = fixed_plan(conditions.schedule.sigmas(recipe.levels(conditions)))
    scale = recipe.scale(conditions)
    return Arm(name=recipe.name, title=recipe.title, question=recipe.question, plan=plan, true_cfg_scale=scale)
