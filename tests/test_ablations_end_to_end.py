"""Real `glance ablate` in a temporary clone: through DVC's queue to the table, a failure included."""

import csv
import shutil

import pytest
from ruamel.yaml import YAML

from pipeline.objectives import OBJECTIVES

GRID = {
    "question": "How much does the noise of the evaluation matter?",
    "arms": ["student", "base_guided"],
    "variants": {  # little to run: the first is the project's own run, which DVC has, and the last fails
        "own": {"evaluation.seed": 100000},
        "other": {"evaluation.seed": 7},
        "wrong": {"evaluation.seed": 7, "training.objective": "magic"},
    },
    "seeds": [0],
    "plot": {"x": "evaluation.seed", "y": ["psnr", "retention"]},
}


@pytest.fixture
def studied(project):
    """The small project with one question of its own; afterwards everything is as before."""
    shutil.rmtree(project.folder / "experiments")  # the shipped ones ask for more steps than its teacher has
    (project.folder / "experiments").mkdir()
    YAML().dump(GRID, project.folder / "experiments" / "tiny.yaml")
    yield project
    project.succeed("git", "checkout", "--quiet", ".")
    project.succeed("git", "clean", "--quiet", "-d", "--force", "--exclude", ".glance")


def test_a_question_runs_through_the_queue_to_its_table(studied):
    glance = ("python", "-m", "pipeline.cli")
    done = studied.run(*glance, "ablate", "tiny", "--jobs", "2")
    assert done.returncode == 1, done.stdout
    assert done.stdout.splitlines()[-1] == "Error: 1 runs failed: tiny-wrong-s0"
    assert "tiny-wrong-s0 FAILED (`dvc queue logs tiny-wrong-s0` says why)" in done.stdout
    assert f"objective must be one of {', '.join(OBJECTIVES)}, got 'magic'" in studied.succeed(
        "dvc", "queue", "logs", "tiny-wrong-s0"
    )
    with (studied.folder / "experiments" / "results" / "tiny.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["arm"] == "student"]
    assert [(row["variant"], row["seed"], row["jobs"], row["prompts"]) for row in rows] == [
        ("own", "0", "2", "6"), ("other", "0", "2", "6"),
    ]  # fmt: skip
    assert rows[0]["psnr"] != rows[1]["psnr"] and rows[0]["base"] == rows[1]["base"]
    text = (studied.folder / "docs" / "ablations.md").read_text()
    assert "| own | Student | 4 |" in text and "| other | Base, guided | 8 |" in text
    assert "Not measured yet: tiny-wrong-s0." in text and "speed-up" not in text
    plot = (studied.folder / "docs" / "ablations" / "tiny.png").read_bytes()

    GRID["variants"].pop("wrong")
    YAML().dump(GRID, studied.folder / "experiments" / "tiny.yaml")
    output = studied.succeed(*glance, "ablate", "tiny")
    assert output.count(" is there, made of ") == 2 and "queued" not in output
    assert (studied.folder / "docs" / "ablations.md").read_text() == text.replace(
        " Not measured yet: tiny-wrong-s0.", ""
    )

    page = (studied.folder / "docs" / "ablations.md").read_bytes()
    names = studied.succeed("git", "for-each-ref", "--format=%(refname)", "refs/exps/??/*/tiny-*").split()
    assert len(names) == 2
    for name in names:
        studied.succeed("git", "update-ref", "-d", name)  # as in a clone, which has no experiments
    studied.succeed(*glance, "ablations")
    assert (studied.folder / "docs" / "ablations.md").read_bytes() == page
    assert (studied.folder / "docs" / "ablations" / "tiny.png").read_bytes() == plot
