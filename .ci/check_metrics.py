"""Holds an evaluation against the bars of student and teacher: says what is below, exits 1 for the student."""

import sys
from pathlib import Path

from pipeline.evaluation import outcome
from pipeline.evaluation.benchmarks.scenes import SCENES

FREE_RIVALS = ("base_unguided", "base_guided_equal_cost")  # the two free ways to spend the student's forwards


def below_bar(metrics: dict) -> list[str]:
    """What the student misses of its bar, one sentence each."""
    arms = metrics["arms"]
    student = arms["student"]
    checks = [
        ("teacher.nfe", arms["teacher"]["nfe"], arms["teacher"]["nfe"] == 100, "must be 100"),
        ("student.nfe", student["nfe"], student["nfe"] == 8, "must be 8"),
        ("student.retention", student["retention"], student["retention"] >= 0.95, "must be at least 0.95"),
        ("student.speedup_batch1", student["speedup_batch1"], student["speedup_batch1"] >= 8, "must be at least 8"),
    ]
    for rival in FREE_RIVALS:
        for column in SCENES.columns:
            if column.compared:
                ours, theirs = student[column.key], arms[rival][column.key]
                wins = column.ahead(ours, theirs)
                checks.append((f"student.{column.key}", ours, wins, f"must beat {rival}'s {theirs:.4g}"))
    return _sentences(checks)


def teacher_below_bar(metrics: dict) -> list[str]:
    """What the shipped teacher misses of its own bar, one sentence each."""
    teacher, tasks = metrics["arms"]["teacher"], metrics["teacher_tasks"]
    prompts = sum(task["n"] for task in tasks.values())
    checks = [
        ("teacher.score", teacher["score"], teacher["score"] >= 0.9, "must be at least 0.9"),
        ("teacher's prompts", prompts, prompts >= 500, "must be at least 500"),
    ]
    for name, task in tasks.items():
        checks.append((f"teacher's {name}", task["score"], task["score"] >= 0.8, "must be at least 0.8"))
    return _sentences(checks)


def _sentences(checks: list[tuple[str, float, bool, str]]) -> list[str]:
    return [f"{name} {rule}, got {value:.4g}" for name, value, holds, rule in checks if not holds]


def main() -> None:
    metrics = outcome.read(Path(sys.argv[1]))
    below = below_bar(metrics)
    for sentence in (*below, *teacher_below_bar(metrics)):
        sys.stderr.write(f"{sentence}\n")
    sys.exit(bool(below))  # the teacher's shortfall is printed; retraining it is no matter of one run


if __name__ == "__main__":
    main()
