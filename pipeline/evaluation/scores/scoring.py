"""Scores the images of every arm: metrics.json, the tables and the grid. The same images give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline import artifacts
from pipeline.evaluation import showing
from pipeline.evaluation.images import ImageSet
from pipeline.evaluation.pictures import grid
from pipeline.evaluation.recipes import PRODUCT, REFERENCE
from pipeline.evaluation.scores import exam, measure, results
from pipeline.evaluation.scores.exam import Exam
from pipeline.evaluation.scores.measure import Measured
from pipeline.params import EvaluationParams
from pipeline.progress import Progress


def score(settings: EvaluationParams, images: ImageSet, folder: Path, progress: Progress) -> None:
    """Measures the images and writes the tables, the grid and metrics.json, each file whole; metrics.json comes last.

    Args:
        settings: How many resamples, and how many prompts in the grid.
        images: The images of every arm.
        folder: Where the files go.
        progress: Shows the progress.

    Raises:
        FileNotFoundError: A file of images is missing.
        ValueError: A file of images is damaged.
    """
    asked = exam.of(images.prompts, images.seed, images.height, images.width)
    with progress(total=images.draws.images * len(images.arms), what="scoring the images", unit="image") as bar:
        measured = measure.measure(images.arms, images.images, asked.judge, images.draws, bar.update)
    scores = metrics(settings, images, asked, measured)
    frames = {
        "arms.csv": results.arms_frame(scores["arms"]),
        "quality_over_nfe.csv": results.quality_frame(scores["arms"]),
        "prompts.csv": results.prompts_frame(measured, asked.prompts, asked.tasks, images.seed),
    }
    for name, frame in frames.items():
        with artifacts.atomic_file(folder / name) as partial:
            frame.to_csv(partial, index=False, encoding="utf-8")
    passed = {name: own.passed for name, own in measured.items()}
    shown = showing.side_by_side(images, passed, settings.grid_prompts)
    with artifacts.atomic_file(folder / "grid.png") as partial:
        grid(showing.titles(images, showing.SIDE_BY_SIDE), shown).save(partial, "PNG", optimize=True)
    artifacts.write_json(folder / "metrics.json", scores)


def metrics(settings: EvaluationParams, images: ImageSet, asked: Exam, measured: Mapping[str, Measured]) -> dict:
    """The content of metrics.json."""
    resamples, seed = settings.bootstrap, images.seed
    by_task = {arm.name: results.task_scores(measured[arm.name].passed, asked.tasks) for arm in images.arms}
    return {
        "arms": results.arm_rows(images.arms, measured, resamples, seed),
        "teacher_tasks": by_task[REFERENCE],
        "tasks": by_task,
        "comparisons": results.comparisons(measured, resamples, seed),
        "agreement": results.agreement(measured[REFERENCE].passed, measured[PRODUCT].passed),
        "prompts": len(asked.prompts),
        "checker_truth": asked.truth,
        "unscored": asked.unscored,
        "teacher_digest": images.origin.teacher_digest,
        "bundle_digest": images.origin.bundle_digest,
    }
