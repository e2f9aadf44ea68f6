"""The parts of a bundle's contract: phases, guidance and the measured retention."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.partition import Phase

SUFFIX = ".safetensors"
NAME = re.compile("[a-z0-9_]+")


@dataclass(frozen=True, kw_only=True)
class BundlePhase:
    """One phase's part of the path: one or more consecutive steps with one adapter."""

    name: str
    """The adapter's name, of a-z, 0-9 and _."""
    file: str
    """The adapter's file in the folder: <name>.safetensors."""
    steps: tuple[int, ...]
    """Teacher steps at which the student's steps start; the nearest ones, if the levels are not the teacher's."""
    u: tuple[float, ...]
    """Base levels at those steps."""
    sigmas: tuple[float, ...]
    """Noise levels at those levels, then at the end of the phase, for the training resolution."""

    def __post_init__(self) -> None:
        """Raises ValueError if the name has other letters, or the file another name."""
        if not NAME.fullmatch(self.name):
            raise ValueError(f"the name of a phase must be of a-z, 0-9 and _, got {self.name!r}")
        if self.file != self.name + SUFFIX:
            raise ValueError(f"the file of phase {self.name} must be {self.name + SUFFIX}, got {self.file!r}")

    @classmethod
    def of(cls, phase: Phase) -> "BundlePhase":
        """The manifest's entry for a phase of a partition; raises ValueError if the name has other letters."""
        return cls(name=phase.name, file=phase.name + SUFFIX, steps=phase.steps, u=phase.u, sigmas=phase.sigmas)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "BundlePhase":
        """Reads an entry of the manifest's list; raises ValueError if the name or the file is none."""
        lists = {key: tuple(entry[key]) for key in ("steps", "u", "sigmas")}
        return cls(name=entry["name"], file=entry["file"], **lists)

    def to_json(self) -> dict[str, Any]:
        """The entry of the manifest's list."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How teacher and student are guided."""

    teacher_true_cfg_scale: float
    student_true_cfg_scale: float
    guidance_scale: float
    negative_prompt: str = ""


@dataclass(frozen=True, kw_only=True)
class Retention:
    """The student's score over the teacher's, with its 95 % interval."""

    value: float
    low: float
    high: float
    score: str
    """Name of the score."""
    prompts: int
    """Number of held-out prompts."""
    student_forwards: int
    """Forwards per image."""
    teacher_forwards: int
    """Forwards per image."""

    @classmethod
    def of(cls, metrics: Mapping[str, Any], score: str = "scenes") -> "Retention | None":
        """The retention in an evaluation's metrics.json, None if the images have no score.

        Raises:
            ValueError: The metrics hold no arms of teacher and student.
        """
        try:
            student, teacher = metrics["arms"]["student"], metrics["arms"]["teacher"]
            if student.get("retention") is None:
                return None
            return cls(
                value=student["retention"],
                low=student["retention_low"],
                high=student["retention_high"],
                score=score,
                prompts=metrics["prompts"],
                student_forwards=student["nfe"],
                teacher_forwards=teacher["nfe"],
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"metrics.json must hold the retention of the arm student, with {error}") from error
