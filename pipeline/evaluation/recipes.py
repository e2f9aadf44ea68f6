"""How every arm is built: its noise levels, its guidance and its adapters. A new arm is an entry of a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline import names
from pipeline.flow.guidance import ASKED, OFF, REUSED, forwards
from pipeline.flow.sampling import StepPlan
from pipeline.flow.schedule import Schedule, base_levels
from pipeline.partition import PHASES
from pipeline.training.rivals import RIVALS, StudentStep, always

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
    modes: Callable[[Conditions], Sequence[str]] | None = None
    """How each step gets its guidance, see `guidance.MODES`; None = every step asks for it."""


def _even(steps: Callable[[Conditions], int]) -> Callable[[Conditions], Sequence[float]]:
    """Evenly spaced base levels, as the stock pipelines have them for num_inference_steps."""
    return lambda conditions: base_levels(steps(conditions)).tolist()


def _equal_cost_steps(conditions: Conditions) -> int:
    """As many guided steps as the student's forwards pay for, at least one."""
    return max(1, conditions.budget // forwards(conditions.teacher_scale))


def _asking_steps(conditions: Conditions) -> int:
    """How many steps ask for guidance where the others do without: with 3 of 5 steps, 8 forwards."""
    return max(1, round(conditions.budget * 3 / 8))


def _steps_beside(conditions: Conditions) -> int:
    """As many steps as the student's forwards pay for, if only `_asking_steps` of them take a second forward."""
    return max(1, conditions.budget - _asking_steps(conditions))


def _early(conditions: Conditions) -> list[str]:
    """Guidance in the first steps alone."""
    asking = _asking_steps(conditions)
    return [ASKED if step < asking else OFF for step in range(_steps_beside(conditions))]


def _reused(conditions: Conditions) -> list[str]:
    """Steps that ask for guidance, evenly among steps that reuse the last step's."""
    steps, asking = _steps_beside(conditions), _asking_steps(conditions)
    asked = {i * steps // asking for i in range(asking)}
    return [ASKED if step in asked else REUSED for step in range(steps)]


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


def _guided(**how) -> Recipe:
    """The bare model at the teacher's guidance; `how` are the other fields of the recipe."""
    return Recipe(scale=_teacher_scale, **how)


FREE = (
    _guided(
        name="base_ab2",
        title="Base, guided, AB2",
        question="The guided model at twice the student's forwards, with Adams-Bashforth's second-order steps.",
        levels=_even(lambda conditions: conditions.student_steps),
        solver="ab2",
    ),
    _guided(
        name="base_dpm",
        title="Base, guided, DPM-Solver++",
        question="The guided model at twice the student's forwards, with DPM-Solver++ 2M.",
        levels=_even(lambda conditions: conditions.student_steps),
        solver="dpm2m",
    ),
    _guided(
        name="base_ab2_equal_cost",
        title="Base, equal cost, AB2",
        question="The student's forwards, spent for free on half as many guided steps of second order.",
        levels=_even(_equal_cost_steps),
        solver="ab2",
    ),
    _guided(
        name="base_dpm_equal_cost",
        title="Base, equal cost, DPM-Solver++",
        question="The student's forwards, spent for free on half as many guided steps of DPM-Solver++ 2M.",
        levels=_even(_equal_cost_steps),
        solver="dpm2m",
    ),
    _guided(
        name="guidance_interval",
        title="Base, guided early",
        question="The student's forwards, spent for free on guided early and unguided late steps (AB2).",
        levels=_even(_steps_beside),
        solver="ab2",
        modes=_early,
    ),
    _guided(
        name="guidance_reuse",
        title="Base, guidance reused",
        question="The student's forwards, spent for free on steps of which some reuse the last step's guidance (AB2).",
        levels=_even(_steps_beside),
        solver="ab2",
        modes=_reused,
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


def check_free(free: Sequence[str]) -> None:
    """Raises ValueError unless each name is that of an arm in `FREE`."""
    for name in free:
        names.check("evaluation.free", name, [recipe.name for recipe in FREE], "be among")


def check_swaps(swaps: Sequence[str]) -> None:
    """Raises ValueError unless each name is that of an arm in `SWAPS`."""
    for name in swaps:
        names.check("evaluation.swaps", name, [recipe.name for recipe in SWAPS], "be among")
