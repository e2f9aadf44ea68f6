"""What DVC runs anew of an evaluation, and which images are made anew, in the small project."""

import json

import pytest

from tests.test_end_to_end import ran

EVALUATION = {"generate_images", "evaluate", "time_arms", "report"}
SHARDS = 2  # of each arm: one of prompts, one of seeds


@pytest.fixture
def changed(project):
    """The small project, to be changed; afterwards everything is as before."""
    yield project
    project.succeed("git", "reset", "--quiet", "--hard")
    project.succeed("dvc", "checkout", "--force", "--quiet")


def stale(project):
    """The stages that DVC would run for a change of their own dependencies."""
    return set(json.loads(project.succeed("dvc", "status", "--json")))


def cached(project):
    """The image files of all evaluations so far."""
    return set((project.folder / ".glance" / "cache" / "evaluation").glob("*/*.zip"))


def append(project, file):
    with (project.folder / file).open("a") as module:
        module.write("\n# changed\n")


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("pipeline/evaluation/scores/frechet.py", {"evaluate"}),
        ("pipeline/evaluation/scores/retention.py", {"evaluate"}),
        ("pipeline/scenes/checker.py", {"evaluate"}),
        ("pipeline/evaluation/report/theme.py", {"report"}),
        ("pipeline/evaluation/report/verdicts.py", {"report"}),
        ("pipeline/evaluation/latency.py", {"time_arms"}),
        ("pipeline/evaluation/sampler.py", {"generate_images", "time_arms"}),
        ("pipeline/evaluation/arms.py", {"check", *EVALUATION}),
        ("pipeline/evaluation/recipes.py", {"check", *EVALUATION}),
    ],
)
def test_a_change_of_code_makes_stale_what_runs_it(changed, file, stages):
    append(changed, file)
    assert stale(changed) == stages


def test_a_change_of_scoring_code_makes_no_image_and_no_report_of_equal_scores(changed):
    before = cached(changed)
    append(changed, "pipeline/evaluation/scores/frechet.py")
    assert ran(changed.succeed("dvc", "repro")) == ["evaluate"]
    assert cached(changed) == before


def test_another_title_of_an_arm_makes_no_image(changed):
    before, file = cached(changed), changed.folder / "pipeline" / "evaluation" / "recipes.py"
    file.write_text(file.read_text().replace('"Student"', '"The student"'))
    assert set(ran(changed.succeed("dvc", "repro", "report"))) == {"check", *EVALUATION}
    assert cached(changed) == before


def test_a_new_arm_makes_its_own_images(changed):
    changed.change("evaluation.seed", 500)  # so that nothing is cached
    changed.change("evaluation.swaps", [])
    changed.succeed("dvc", "repro", "generate_images")
    before = cached(changed)
    changed.change("evaluation.swaps", ["swapped"])
    assert stale(changed) >= {"generate_images", "time_arms", "report"}
    assert ran(changed.succeed("dvc", "repro", "generate_images")) == ["check", "generate_images"]
    assert len(cached(changed) - before) == SHARDS


def test_a_new_student_makes_the_images_of_the_arms_that_it_changes(changed):
    before = cached(changed)
    changed.change("train_fast.learning_rate", 4e-3)
    assert "generate_images" in ran(changed.succeed("dvc", "repro", "generate_images"))
    arms = ("student", "fast_only", "swapped", "single")  # one adapter learns at the mean of the two rates
    assert len(cached(changed) - before) == SHARDS * len(arms)
