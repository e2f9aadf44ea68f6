"""What is compared: every arm is a row of `RECIPES`, a way to spend forwards on the same prompts and noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipeline import names
from pipeline.guidance import forwards
from pipeline.partition import PHASES
from pipeline.sampling import PhasePlan, fixed_plan
from pipeline.schedule import Schedule, base_levels

REFERENCE = "teacher"
PRODUCT = "student"


@dataclass(frozen=True)
class Setting:
    """What the recipes draw on.

    Attributes:
        schedule: Base levels to sigmas, at the evaluated resolution.
        teacher_steps: Steps of the teacher.
        student: The student's own plan, with the adapters "slow" and "fast".
        teacher_scale: The teacher's true_cfg_scale.
        student_scale: The student's true_cfg_scale.
        controls: Control arms that have adapters.
        swaps: Arms that use the pair's adapters otherwise.
    """

    schedule: Schedule
    teacher_steps: int
    student: PhasePlan
    teacher_scale: float
    student_scale: float
    controls: tuple[str, ...]
    swaps: tuple[str, ...]

    @property
    def student_steps(self) -> int:
        """K, the student's steps."""
        return len(self.student.adapters)


@dataclass(frozen=True)
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
    plan: PhasePlan
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
        """What its cost depends on: forwards per step, and which steps share an adapter, numbered as they appear."""
        places: dict[str | None, int] = {
            name: place for place, name in enumerate(dict.fromkeys(filter(None, self.plan.adapters)))
        }
        return forwards(self.true_cfg_scale), tuple(places.get(name) for name in self.plan.adapters)


@dataclass(frozen=True)
class ShownArm:
    """An arm as scores, tables and the report know it; its title and its question are those of its recipe."""

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
        return next(recipe for recipe in RECIPES if recipe.name == self.name)


@dataclass(frozen=True)
class Recipe:
    """A row of the table: where the steps lie, how they are guided, which adapters act.

    `levels` gives the base levels of the bare backbone; None is the student's own plan, and `adapters` names what acts
    in its slow and in its fast steps. `control` says that those are trained for it alone, `swap` that they are the
    pair's own in other places.
    """

    name: str
    title: str
    question: str
    levels: Callable[[Setting], Sequence[float]] | None
    scale: Callable[[Setting], float]
    adapters: tuple[str, str] | None = None
    control: bool = False
    swap: bool = False


def _even(steps: Callable[[Setting], int]) -> Callable[[Setting], Sequence[float]]:
    """Evenly spaced base levels, what the stock pipelines do for num_inference_steps."""
    return lambda setting: base_levels(steps(setting)).tolist()


def _equal_cost_steps(setting: Setting) -> int:
    """As many guided steps as the student's forwards pay for, at least one."""
    budget = setting.student_steps * forwards(setting.student_scale)
    return max(1, budget // forwards(setting.teacher_scale))


def _teacher_scale(setting: Setting) -> float:
    return setting.teacher_scale


def _student_scale(setting: Setting) -> float:
    return setting.student_scale


RECIPES = (
    Recipe(
        "teacher",
        "Teacher",
        "The ceiling: all steps, guided.",
        _even(lambda setting: setting.teacher_steps),
        _teacher_scale,
    ),
    Recipe(
        "base_guided",
        "Base, guided",
        "What anybody can do for free: fewer steps of the same model, guided, at twice the student's forwards.",
        _even(lambda setting: setting.student_steps),
        _teacher_scale,
    ),
    Recipe(
        "base_unguided",
        "Base, unguided",
        "The student's forwards, spent for free without guidance.",
        _even(lambda setting: setting.student_steps),
        lambda setting: 1.0,
    ),
    Recipe(
        "base_guided_equal_cost",
        "Base, equal cost",
        "The student's forwards, spent for free on half as many guided steps.",
        _even(_equal_cost_steps),
        _teacher_scale,
    ),
    Recipe(
        "student",
        "Student",
        "The product: slow and fast adapter.",
        None,
        _student_scale,
        ("slow", "fast"),
    ),
    Recipe(
        "slow_only",
        "Slow adapter only",
        "Is the fast adapter needed, or would the slow one do in every step?",
        None,
        _student_scale,
        ("slow", "slow"),
        swap=True,
    ),
    Recipe(
        "fast_only",
        "Fast adapter only",
        "Is the slow adapter needed, or would the fast one do in every step?",
        None,
        _student_scale,
        ("fast", "fast"),
        swap=True,
    ),
    Recipe(
        "single",
        "One adapter",
        "Does the split matter, or is one adapter with the same total budget as good?",
        None,
        _student_scale,
        ("single", "single"),
        control=True,
    ),
    Recipe(
        "swapped",
        "Swapped adapters",
        "Did the two adapters learn different things?",
        None,
        _student_scale,
        ("fast", "slow"),
        swap=True,
    ),
    Recipe(
        "official",
        "Official objective",
        "What the paper's recipe gives here: its objective and settings, one sample.",
        None,
        _student_scale,
        ("official_slow", "official_fast"),
        control=True,
    ),
)


def build(setting: Setting) -> list[Arm]:
    """The arms of an evaluation, in the order of `RECIPES`; controls and swaps that are not asked for are left out.

    Raises:
        ValueError: If a control or a swap is unknown.
    """
    check_swaps(setting.swaps)
    asked = {*control_adapters(setting.controls), *setting.swaps}
    return [_arm(recipe, setting) for recipe in RECIPES if recipe.name in asked or not (recipe.control or recipe.swap)]


def check_swaps(swaps: Sequence[str]) -> None:
    """Raises ValueError unless each of these arms is one that uses the pair's adapters otherwise."""
    for name in swaps:
        names.check("evaluation.swaps", name, [recipe.name for recipe in RECIPES if recipe.swap], "be among")


def control_adapters(controls: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The adapters of each control, in the order of `RECIPES`; raises as `build` does."""
    known = {recipe.name: recipe.adapters for recipe in RECIPES if recipe.control and recipe.adapters}
    for name in controls:
        names.check("train_controls.arms", name, known, "be among")
    return {name: adapters for name, adapters in known.items() if name in controls}


def _arm(recipe: Recipe, setting: Setting) -> Arm:
    if recipe.levels is None:
        acting: dict[str | None, str] = dict(zip(PHASES, recipe.adapters or (), strict=True))
        plan = replace(setting.student, adapters=tuple(acting[phase] for phase in setting.student.adapters))
    else:
        plan = fixed_plan(setting.schedule.sigmas(recipe.levels(setting)))
    return Arm(recipe.name, recipe.title, recipe.question, plan, recipe.scale(setting))
