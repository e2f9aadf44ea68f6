"""The ways to train adapters: a new one is a file of this package and an entry of the table."""

from pipeline import names
from pipeline.training.trainers.base import MakeTrainer
from pipeline.training.trainers.distribution import DistributionTrainer
from pipeline.training.trainers.heads import HeadsTrainer
from pipeline.training.trainers.objective import ObjectiveTrainer

TRAINERS: dict[str, MakeTrainer] = {"objective": ObjectiveTrainer, "dmd2": DistributionTrainer, "pdd": HeadsTrainer}


def check(key: str, trainer: str) -> None:
    """Raises ValueError, which names `key`, unless there is such a trainer."""
    names.check(key, trainer, TRAINERS)
