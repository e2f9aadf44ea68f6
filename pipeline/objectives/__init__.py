"""The choices of training.objective: a new one is a file of this package and a line of the table."""

from pipeline import names
from pipeline.objectives.base import Objective
from pipeline.objectives.consistency import CONSISTENCY
from pipeline.objectives.regression import FLOW, TRAJECTORY
from pipeline.objectives.rollout import ROLLOUT

OBJECTIVES: dict[str, Objective] = {
    "trajectory": TRAJECTORY,
    "flow": FLOW,
    "consistency": CONSISTENCY,
    "rollout": ROLLOUT,
}


def check(key: str, objective: str) -> None:
    """Raises ValueError, which names `key`, unless there is such an objective."""
    names.check(key, objective, OBJECTIVES)
