"""What adapters are trained on: the recordings, and the student's path through them."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline import artifacts
from pipeline.partition import Partition
from pipeline.recording import trajectories
from pipeline.recording.trajectories import Trajectories
from pipeline.training.jobs import Step


@dataclass(frozen=True)
class TrainingData:
    """The recordings that the stages before the trainings wrote, and the path that adapters are trained for."""

    partition: Partition
    trajectories: Trajectories
    anchors: Trajectories | None
    """None = no anchors."""

    @classmethod
    def load(cls) -> "TrainingData":
        """Reads the artifacts. Raises FileNotFoundError and ValueError as their readers do."""
        partition = Partition.from_json(artifacts.read_json(artifacts.PARTITION))
        return cls(partition, Trajectories(artifacts.TRAJECTORIES), trajectories.load(artifacts.ANCHORS))

    def steps(self, *phases: str) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
        """The phases' student steps in recorded steps of the trajectories, and of the anchors (() without anchors).

        Raises:
            ValueError: A level of the partition was not recorded.
        """
        anchored = () if self.anchors is None else self._steps(self.anchors, phases)
        return self._steps(self.trajectories, phases), anchored

    @property
    def path(self) -> tuple[int, ...]:
        """Recorded steps of the trajectories at which the student's steps start, then the last one's end.

        Raises:
            ValueError: A level of the partition was not recorded.
        """
        pairs = self.trajectories.pairs(self.partition.u)
        return (*(start for start, _ in pairs), pairs[-1][1])

    def _steps(self, recorded: Trajectories, phases: Sequence[str]) -> tuple[Step, ...]:
        pairs, slow = recorded.pairs(self.partition.u), len(self.partition.slow.steps)
        parts = {"slow": pairs[:slow], "fast": pairs[slow:]}
        return tuple(step for phase in phases for step in parts[phase])
