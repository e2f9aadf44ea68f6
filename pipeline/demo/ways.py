"""The switch of the page: which adapter acts in each step of the student."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipeline.bundle.manifest import Bundle
from pipeline.evaluation.arms import student_steps
from pipeline.evaluation.recipes import SWAPS
from pipeline.flow.sampling import StepPlan
from pipeline.partition import PHASES
from pipeline.training.rivals import StudentStep, always

WHOLE = "pair"
"""The way that every bundle has: its own adapters in their own steps."""


@dataclass(frozen=True)
class Way:
    """A choice of adapters."""

    name: str
    title: str
    adapter: Callable[[StudentStep], str | None] | None = None
    """The adapter of a step; None = the bundle's own."""

    def plan(self, plan: StepPlan) -> StepPlan:
        """The student's own plan with the adapters of this way."""
        if self.adapter is None:
            return plan
        return replace(plan, adapters=tuple(map(self.adapter, student_steps(plan))))


NEITHER = Way("neither", "no adapter", lambda step: None)
"""The base in the student's steps."""
OF_A_PAIR = (
    Way(WHOLE, "pair"),
    *(Way(recipe.name, recipe.name.replace("_", " "), recipe.adapter) for recipe in SWAPS),
    NEITHER,
)


def ways(phases: Sequence[str]) -> tuple[Way, ...]:
    """The ways of a bundle with these phases: those of a pair, or all its adapters, each one alone, and none."""
    if set(phases) == set(PHASES):
        return OF_A_PAIR
    alone = (Way(f"{name}_only", f"{name} only", always(name)) for name in phases)
    return (Way(WHOLE, "all adapters"), *alone, NEITHER)


def find(bundle: Bundle, name: str) -> Way:
    """The way of this name; a bundle that lacks it is used whole."""
    known = {way.name: way for way in ways([phase.name for phase in bundle.phases])}
    return known.get(name, known[WHOLE])
