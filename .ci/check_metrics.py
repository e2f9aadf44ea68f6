"""Compares an evaluation with the bar of the shipped teacher; says what is below it and exits 1."""

import sys

from pipeline.artifacts import read_json

FREE_RIVALS = ("base_unguided", "base_guided_equal_cost")  # the two free ways to spend the student's forwards
HIGHER_IS_BETTER = {"score": True, "psnr": True, "ssim": True, "fd_scenes": False}


def failures(metrics: dict) -> list[str]:
    """What of the bar is not met, one sentence each."""
    arms, tasks = metrics["arms"], metrics["teacher_tasks"]
    teacher, student = arms["teacher"], arms["student"]
    prompts = sum(task["n"] for task in tasks.values())
    checks = [
        ("teacher.nfe", teacher["nfe"], teacher["nfe"] == 100, "must be 100"),
        ("teacher.score", teacher["score"], teacher["score"] >= 0.9, "must be at least 0.9"),
        ("teacher's prompts", prompts, prompts >= 500, "must be at least 500"),
        ("student.nfe", student["nfe"], student["nfe"] == 8, "must be 8"),
        ("student.retention", student["retention"], student["retention"] >= 0.95, "must be at least 0.95"),
        ("student.speedup_batch1", student["speedup_batch1"], student["speedup_batch1"] >= 8, "must be at least 8"),
    ]
    for name, task in tasks.items():
        checks.append((f"teacher's {name}", task["score"], task["score"] >= 0.8, "must be at least 0.8"))
    for rival in FREE_RIVALS:
        for key, higher in HIGHER_IS_BETTER.items():
            ours, theirs = student[key], arms[rival][key]
            wins = ours > theirs if higher else ours < theirs
            checks.append((f"student.{key}", ours, wins, f"must beat {rival}'s {theirs:.4g}"))
    return [f"{name} {rule}, got {value:.4g}" for name, value, holds, rule in checks if not holds]


def main() -> None:
    below = failures(read_json(sys.argv[1]))
    for sentence in below:
        sys.stderr.write(f"{sentence}\n")
    sys.exit(bool(below))


if __name__ == "__main__":
    main()
