"""Turns measured values into tables: metrics.json, and pandas frames for the CSV files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd

from pipeline.evaluation.arms import ShownArm
from pipeline.evaluation.recipes import PRODUCT, REFERENCE
from pipeline.evaluation.scores import frechet, retention
from pipeline.evaluation.scores.appearance import Appearance, ratio, shift
from pipeline.evaluation.scores.measure import Measured
from pipeline.evaluation.scores.retention import UNDEFINED, Estimate

QUALITY_COLUMNS = ("nfe", "retention", "retention_low", "retention_high", "fd_scenes", "psnr", "ssim")


def arm_rows(
    arms: Sequence[ShownArm], measured: Mapping[str, Measured], resamples: int, seed: int
) -> dict[str, dict[str, float | int | None]]:
    """The "arms" of metrics.json: one flat row per arm.

    Scores and retention are ratios. An undefined number is None: a score without a checker, the teacher's PSNR to
    itself, a distance of one image, a ratio to a teacher whose images are all flat.

    Args:
        arms: In the order of the table.
        measured: Measured values, by arm.
        resamples: How many bootstrap resamples of the prompts.
        seed: Of the resampling.
    """
    teacher = measured[REFERENCE]
    rows = {}
    for arm in arms:
        own = measured[arm.name]
        score = kept = UNDEFINED
        if own.passed is not None and teacher.passed is not None:
            score = retention.proportion(own.passed)
            kept = retention.ratio_of_means(own.passed, teacher.passed, resamples, seed)
        spread = teacher.spread.mean()
        rows[arm.name] = {
            "nfe": arm.nfe,
            "steps": arm.steps,
            **_named("score", score),
            **_named("retention", kept),
            "fd_scenes": frechet.frechet_distance(own.features, teacher.features),
            "psnr": None if arm.name == REFERENCE else float(own.psnr.mean()),
            "ssim": float(own.ssim.mean()),
            "diversity": float(own.spread.mean() / spread) if spread > 0 else None,
            **_look(own.appearance, teacher.appearance),
        }
    return rows


def _look(own: Appearance, teacher: Appearance) -> dict[str, float | None]:
    return {
        "brightness_shift": shift(own.brightness, teacher.brightness),
        "chroma_shift": shift(own.chroma, teacher.chroma),
        "contrast": ratio(own.contrast, teacher.contrast),
        "detail": ratio(own.detail, teacher.detail),
    }


def _named(name: str, estimate: Estimate) -> dict[str, float | None]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def task_scores(passed: np.ndarray | None, tasks: Sequence[str] | None) -> dict[str, dict[str, float | None]]:
    """Score per task with Wilson's interval; {} where no checker reads the images.

    Args:
        passed: bool (N,).
        tasks: The task of each prompt, N names.
    """
    if passed is None or tasks is None:
        return {}
    scores: dict[str, dict[str, float | None]] = {}
    for task in dict.fromkeys(tasks):
        of_task = passed[np.array(tasks) == task]
        estimate = retention.proportion(of_task)
        scores[task] = {"score": estimate.value, "low": estimate.low, "high": estimate.high, "n": len(of_task)}
    return dict(sorted(scores.items()))


def comparisons(
    measured: Mapping[str, Measured], resamples: int, seed: int
) -> dict[str, dict[str, dict[str, float | None]]]:
    """The student minus every other arm but the teacher, paired over prompts: {ARM: {METRIC: {value, low, high}}}."""
    student = measured[PRODUCT]
    result = {}
    for name, other in measured.items():
        if name in (REFERENCE, PRODUCT):
            continue
        gaps = {
            metric: retention.difference_of_means(getattr(student, metric), getattr(other, metric), resamples, seed)
            for metric in ("psnr", "ssim")
        }
        if student.passed is not None and other.passed is not None:
            gaps["score"] = retention.difference_of_means(student.passed, other.passed, resamples, seed)
        result[name] = {metric: asdict(gap) for metric, gap in gaps.items()}
    return result


def agreement(teacher: np.ndarray | None, student: np.ndarray | None) -> dict[str, int] | None:
    """How many prompts both arms, one arm or neither passes; None if no checker reads the images."""
    if teacher is None or student is None:
        return None
    return {
        "both": int((teacher & student).sum()),
        "teacher_only": int((teacher & ~student).sum()),
        "student_only": int((~teacher & student).sum()),
        "neither": int((~teacher & ~student).sum()),
    }


def arms_frame(rows: Mapping[str, Mapping]) -> pd.DataFrame:
    """One row per arm, every number of metrics.json a column."""
    return pd.DataFrame([{"arm": name, **row} for name, row in rows.items()])


def quality_frame(rows: Mapping[str, Mapping]) -> pd.DataFrame:
    """Quality over cost, for a plot: arms by rising NFE."""
    return arms_frame(rows)[["arm", *QUALITY_COLUMNS]].sort_values(["nfe", "arm"], ignore_index=True)


def prompts_frame(
    measured: Mapping[str, Measured], prompts: Sequence[str], tasks: Sequence[str] | None, seed: int
) -> pd.DataFrame:
    """One row per arm and prompt: the prompt, the checker's verdict, and PSNR and SSIM to the teacher's image."""
    frames = [
        pd.DataFrame(
            {
                "arm": name,
                "prompt": range(len(prompts)),
                "seed": range(seed, seed + len(prompts)),
                "task": tasks if tasks is not None else "",
                "caption": prompts,
                "passed": own.passed if own.passed is not None else None,
                "psnr": own.psnr.round(3),
                "ssim": own.ssim.round(5),
            }
        )
        for name, own in measured.items()
    ]
    return pd.concat(frames, ignore_index=True)
