"""What is compared: every arm is a way to spend forwards on the same prompts and noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipeline import names
from pipeline.flow.guidance import ASKED, evaluations, forwards
from pipeline.flow.sampling import StepPlan, fixed_plan
from pipeline.flow.schedule import Schedule, base_levels
from pipeline.partition import PHASES
from pipeline.training.rivals import RIVALS, StudentStep, always, chosen

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
        free: Arms of the bare model with another solver or guidance, by name.
        swaps: Arms that use the pair's adapters in other phases, by name.
    """

    schedule: Schedule
    teacher_steps: int
    student: StepPlan
    teacher_scale: float
    student_scale: float
    rivals: tuple[str, ...]
    free: tuple[str, ...]
    swaps: tuple[str, ...]

    @property
    def student_steps(self) -> int:
        """K, the student's steps."""
        return len(self.student.adapters)

    @property
    def budget(self) -> int:
        """The student's forwards per image."""
        return self.student_steps * forwards(self.student_scale)

    @property
    def is_pair(self) -> bool:
        """Whether the student has a slow and a fast phase, and no other."""
        return set(self.student.adapters) == set(PHASES)


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
        """Forwards per image: a step that asks for guidance takes two."""
        return evaluations(self.plan.guidance, self.steps, self.true_cfg_scale)

    @property
    def workload(self) -> tuple[tuple[int, ...], tuple[int | None, ...]]:
        """What the arm's cost depends on: each step's forwards, and its adapter, numbered as they appear."""
        places: dict[str | None, int] = {
            name: place for place, name in enumerate(dict.fromkeys(filter(None, self.plan.adapters)))
        }
        modes = self.plan.guidance or (ASKED,) * self.steps
        each = tuple(evaluations((mode,), 1, self.true_cfg_scale) for mode in modes)
        return each, tuple(places.get(name) for name in self.plan.adapters)


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
    adapter: Callable[[StudentStep], str] | None = None
    """The active adapter in a step of the student's plan; None = the student's own."""
    solver: str | None = None
    """One of `solvers.SOLVERS`; None = the student's for an arm with adapters, Euler's for the bare backbone."""
    modes: Callable[[int], Sequence[str]] | None = None
    """(steps) -> how each step gets its guidance; None = every step asks for it."""


def _even(steps: Callable[[Conditions], int]) -> Callable[[Conditions], Sequence[float]]:
    """Evenly spaced base levels, as the stock pipelines have them for num_inference_steps."""
    return lambda conditions: base_levels(steps(conditions)).tolist()


def _equal_cost_steps(conditions: Conditions) -> int:
    """As many guided steps as the student's forwards pay for, at least one."""
    return max(1, conditions.budget // forwards(conditions.teacher_scale))


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

FREE = (
    Recipe(
        name="base_ab2",
        title="Base, guided, AB2",
        question="The guided model at twice the student's forwards, with Adams-Bashforth's second-order steps.",
        levels=_even(lambda conditions: conditions.student_steps),
        scale=_teacher_scale,
        solver="ab2",
    ),
    Recipe(
        name="base_dpm",
        title="Base, guided, DPM-Solver++",
        question="The guided model at twice the student's forwards, with DPM-Solver++ 2M.",
        levels=_even(lambda conditions: conditions.student_steps),
        scale=_teacher_scale,
        solver="dpm2m",
    ),
    Recipe(
        name="base_ab2_equal_cost",
        title="Base, equal cost, AB2",
        question="The student's forwards, spent for free on half as many guided steps of second order.",
        levels=_even(_equal_cost_steps),
        scale=_teacher_scale,
        solver="ab2",
    ),
    Recipe(
        name="base_dpm_equal_cost",
        title="Base, equal cost, DPM-Solver++",
        question="The student's forwards, spent for free on half as many guided steps of DPM-Solver++ 2M.",
        levels=_even(_equal_cost_steps),
        scale=_teacher_scale,
        solver="dpm2m",
    ),
)
"""Free rivals with another solver or other guidance: the choices of evaluation.free."""

STUDENT = Recipe(
    name=PRODUCT,
    title="Student",
    question="The product: slow and fast adapter.",
    scale=_student_scale,
)

SWAPS = (
    Recipe(
        name="slow_only",
        title="Slow adapter only",
        question="Is the fast adapter needed, or would the slow one do in every step?",
        scale=_student_scale,
        adapter=always("slow"),
    ),
    Recipe(
        name="fast_only",
        title="Fast adapter only",
        question="Is the slow adapter needed, or would the fast one do in every step?",
        scale=_student_scale,
        adapter=always("fast"),
    ),
    Recipe(
        name="swapped",
        title="Swapped adapters",
        question="Did the two adapters learn different things?",
        scale=_student_scale,
        adapter=lambda step: {"slow": "fast", "fast": "slow"}[step.phase],
    ),
)
"""Arms with the pair's adapters in other phases: the choices of evaluation.swaps."""


def recipes() -> list[Recipe]:
    """Every possible arm, in the order of the tables; the rivals' arms run with the student's plan and scale."""
    rivals = [
        Recipe(
            name=name,
            title=rival.title,
            question=rival.question,
            scale=_student_scale,
            adapter=rival.adapter,
            solver=rival.solver,
        )
        for name, rival in RIVALS.items()
    ]
    return [*BASES, *FREE, STUDENT, *SWAPS, *rivals]


def titles() -> dict[str, str]:
    """The title of every arm, by its name, in the order of the tables."""
    return {recipe.name: recipe.title for recipe in recipes()}


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


def check_free(free: Sequence[str]) -> None:
    """Raises ValueError unless each name is that of an arm in `FREE`."""
    for name in free:
        names.check("evaluation.free", name, [recipe.name for recipe in FREE], "be among")


def check_swaps(swaps: Sequence[str]) -> None:
    """Raises ValueError unless each name is that of an arm in `SWAPS`."""
    for name in swaps:
        names.check("evaluation.swaps", name, [recipe.name for recipe in SWAPS], "be among")


def student_steps(plan: StepPlan) -> list[StudentStep]:
    """The steps of the student's own plan."""
    levels = plan.sigmas.tolist()[:-1]
    return [
        StudentStep(number=number, sigma=sigma, phase=phase or "")
        for number, (sigma, phase) in enumerate(zip(levels, plan.adapters, strict=True))
    ]


def _arm(recipe: Recipe, conditions: Conditions) -> Arm:
    if recipe.levels is None:
        plan = conditions.student
        if recipe.adapter is not None:
            plan = replace(plan, adapters=tuple(map(recipe.adapter, student_steps(plan))))
        plan = replace(plan, solver=recipe.solver or plan.solver)
    else:
        plan = fixed_plan(conditions.schedule.sigmas(recipe.levels(conditions)))
        modes = recipe.modes and tuple(recipe.modes(len(plan.adapters)))
        plan = replace(plan, solver=recipe.solver or plan.solver, guidance=modes)
    scale = recipe.scale(conditions)
    return Arm(name=recipe.name, title=recipe.title, question=recipe.question, plan=plan, true_cfg_scale=scale)
