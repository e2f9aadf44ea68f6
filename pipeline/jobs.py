"""What is trained: the settings and the student steps of one adapter."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline import artifacts, trajectories
from pipeline.artifacts import code_digest, digest_of, file_digest
from pipeline.params import Params, PhaseParams, TrainingParams
from pipeline.partition import Partition
from pipeline.trajectories import INDEX, Trajectories

Step = tuple[int, int]
"""A student step: its start and its end in the steps of a recording."""


@dataclass(frozen=True)
class Settings:
    """How an adapter is trained; the words are those of params.yaml."""

    objective: str
    rank: int
    alpha: float
    targets: str
    batch: int
    anchor_batch: int
    precision: str
    checkpoint_every: int
    learning_rate: float
    train_steps: int
    seed: int

    @classmethod
    def of(cls, training: TrainingParams, phase: PhaseParams) -> "Settings":
        """The shared settings with one phase's own."""
        return cls(**asdict(training), **asdict(phase))


@dataclass(frozen=True)
class Job:
    """One adapter to train: everything its bytes depend on, but for the teacher, the trajectories and the code."""

    name: str
    steps: tuple[Step, ...]
    """The student steps that it serves, in the trajectories' own."""
    settings: Settings
    guidance_scale: float
    true_cfg_scale: float
    """The student's: above 1 its guided velocity is what is trained, at 1 the guidance is baked in."""
    anchored: tuple[Step, ...] = ()
    """The same in the anchors' own; () = no anchors."""
    trajectories: int | None = None
    """Train on the first so many trajectories; None = all."""


@dataclass(frozen=True)
class Recorded:
    """What adapters are trained on, and for which path."""

    partition: Partition
    trajectories: Trajectories
    anchors: Trajectories | None
    """None = there are none."""

    @classmethod
    def load(cls) -> "Recorded":
        """What the stages before the trainings wrote. Raises FileNotFoundError and ValueError as their readers do."""
        partition = Partition.from_json(artifacts.read_json(artifacts.PARTITION))
        return cls(partition, Trajectories(artifacts.TRAJECTORIES), trajectories.load(artifacts.ANCHORS))

    def steps(self, *phases: str) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
        """The student steps of phases in the trajectories' own and in the anchors', () without those.

        Raises:
            ValueError: A level of the partition was not recorded.
        """
        anchored = () if self.anchors is None else self._steps(self.anchors, phases)
        return self._steps(self.trajectories, phases), anchored

    def _steps(self, recorded: Trajectories, phases: Sequence[str]) -> tuple[Step, ...]:
        pairs, slow = recorded.pairs(self.partition.u), len(self.partition.slow.steps)
        parts = {"slow": pairs[:slow], "fast": pairs[slow:]}
        return tuple(step for phase in phases for step in parts[phase])


def of_phase(params: Params, recorded: Recorded, phase: str) -> Job:
    """The adapter of one phase, "slow" or "fast". Raises as `Recorded.steps` does."""
    settings = Settings.of(params.training, {"slow": params.train_slow, "fast": params.train_fast}[phase])
    steps, anchored = recorded.steps(phase)
    return Job(phase, steps, settings, params.teacher.guidance_scale, params.student.true_cfg_scale, anchored)


def key(job: Job, *recordings: Path) -> str:
    """Digest of what a job's bytes depend on: itself, what was recorded (its index names the teacher), the code."""
    return digest_of([job, *(file_digest(Path(folder) / INDEX) for folder in recordings), code_digest()])
