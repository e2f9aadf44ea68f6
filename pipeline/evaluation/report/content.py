"""What the report shows, gathered from the files of the earlier stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from pipeline import flow
from pipeline.evaluation import outcome, showing
from pipeline.evaluation.arms import ShownArm
from pipeline.evaluation.images import ImageSet
from pipeline.evaluation.pictures import Row
from pipeline.evaluation.report.histories import History
from pipeline.flow import schedule
from pipeline.params import Params

HIDDEN_SECTIONS = ("register", "runtime")  # parameters that change nothing the report shows
STAGE_SECTIONS = ("trajectories", "partition", "training", "train_slow", "train_fast", "train_controls", "student")


@dataclass(frozen=True)
class Content:
    """Everything the page shows.

    Attributes:
        metrics: Scores and times, as `outcome.read` gives them.
        arms: The arms, in the order of the tables.
        titles: Titles of the arms in `side_by_side`.
        side_by_side: One row per shown prompt.
        failure_titles: Titles of the arms in `failures`.
        failures: The first prompts where the teacher passes and the student does not.
        histories: (train_step, loss) by adapter.
        trained_here: Whether this project trained the pair, so that its training prompts are known.
        snr: SNR at each teacher step.
        phases: Teacher steps at which the student's steps start, by phase, in order.
        provenance: What the evaluation was made of, label to text.
        params: The parameters, as nested dicts.
    """

    metrics: Mapping
    arms: Sequence[ShownArm]
    titles: Sequence[str]
    side_by_side: Sequence[Row]
    failure_titles: Sequence[str]
    failures: Sequence[Row]
    histories: Mapping[str, Sequence[tuple[int, float]]]
    trained_here: bool
    snr: Sequence[float]
    phases: Mapping[str, Sequence[int]]
    provenance: Mapping[str, str]
    params: Mapping


def gather(
    params: Params, images: ImageSet, evaluation: Path, histories: Mapping[str, History], trained_here: bool
) -> Content:
    """Everything the report of an evaluation shows.

    Args:
        params: All parameters.
        images: The images of every arm.
        evaluation: The folder with metrics.json and prompts.csv.
        histories: Losses by adapter.
        trained_here: Whether this project's stages trained the pair.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: As `outcome.read` and `ImageSet.images` do.
    """
    origin, passed = images.origin, _passed(evaluation / "prompts.csv")
    sigmas = origin.schedule.sigmas(schedule.base_levels(origin.teacher_steps))
    hidden = HIDDEN_SECTIONS if trained_here else (*HIDDEN_SECTIONS, *STAGE_SECTIONS)
    return Content(
        metrics=outcome.read(evaluation),
        arms=images.arms,
        titles=showing.titles(images, showing.SIDE_BY_SIDE),
        side_by_side=showing.side_by_side(images, passed, params.evaluation.grid_prompts),
        failure_titles=showing.titles(images, showing.FAILURE_ARMS),
        failures=showing.failures(images, passed),
        histories=histories,
        trained_here=trained_here,
        snr=flow.snr(sigmas[:-1]).tolist(),
        phases=origin.phases,
        provenance={
            "Teacher": f"{params.teacher.path}, {origin.teacher_digest}",
            "Bundle": origin.bundle_digest,
            "Path": origin.path,
            **{f"Adapter {name}": digest for name, digest in origin.adapter_digests.items()},
            "Versions": ", ".join(f"{name} {number}" for name, number in origin.versions.items()),
        },
        params={name: value for name, value in asdict(params).items() if name not in hidden},
    )


def _passed(table: Path) -> showing.Passed:
    """The verdicts in prompts.csv, by arm."""
    frame = pd.read_csv(table, encoding="utf-8")
    unscored = frame["passed"].isna().all()
    return {name: None if unscored else rows["passed"].to_numpy(dtype=bool) for name, rows in frame.groupby("arm")}
