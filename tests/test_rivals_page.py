"""docs/rivals.md: what is in its table, which rows no other row beats, and what a training costs."""

from dataclasses import replace

import pytest

from measurements import rivals as measured
from measurements.rivals import Cost, Row, front, rows
from pipeline import artifacts
from pipeline.ablations import grid
from pipeline.ablations.results import Result
from pipeline.params import load
from pipeline.training import rivals
from pipeline.training.costs import pair_budget
from tests.recorded import record_tiny

COSTS = {"8 steps": {"student": {"forwards": 100.0, "seconds": 7.0}, "pdd": {"forwards": 90.0, "seconds": 8.0}}}


def result(arm, seed=0, variant="8 steps", **metrics):
    found = {"nfe": 8.0, "score": 0.9, "retention": 1.0, "psnr": 30.0, "fd_scenes": 0.1, "diversity": 1.0}
    return Result(variant, seed, arm, "run", "", "base", "baseline", "revision", 1, 252, found | metrics)


def row(arm, nfe=8, seeds=(0,), **values):
    found = {"score": 0.9, "retention": 1.0, "psnr": 30.0, "fd_scenes": 0.1, "diversity": 1.0} | values
    return Row(arm, "8 steps", nfe, None, {seed: found for seed in seeds})


def question(name):
    return grid.load(name, load())


def test_a_row_is_the_mean_over_seeds_with_its_range_and_its_cost():
    (found,) = rows([(question("rivals"), [result("pdd", 0, psnr=29.0), result("pdd", 1, psnr=31.0)])], COSTS)
    assert (found.mean("psnr"), found.range("psnr"), found.mean("psnr", [1])) == (30.0, (29.0, 31.0), 31.0)
    assert (set(found.seeds), found.cost, found.title) == ({0, 1}, Cost(90.0, 8.0), "PDD from the recording")


def test_an_arm_of_two_questions_comes_once_and_a_free_arm_once_for_each_cost():
    student = [result("student", seed) for seed in (0, 1)]
    base = [result("base_guided", nfe=16.0), result("base_guided", variant="4 steps", nfe=8.0)]
    same = result("base_guided_equal_cost")  # the same images under another name
    found = rows([(question("rivals"), [*student, *base, same]), (question("experts"), [student[0]])], COSTS)
    assert [(one.arm, one.nfe, len(one.seeds)) for one in found] == [
        ("base_guided", 16, 1),
        ("base_guided", 8, 1),
        ("student", 8, 2),
    ]


def test_arms_that_a_question_does_not_show_are_left_out():
    assert rows([(question("rivals"), [result("lcm")])], COSTS) == []


def test_a_student_that_keeps_its_guidance_is_another_row():
    kept = result("student", variant="Adams-Bashforth 2", nfe=16.0)
    titles = [
        row.title for row in rows([(question("rivals"), [result("student")]), (question("solver"), [kept])], COSTS)
    ]
    assert titles == ["Student, guidance kept, AB2", "Student"]


def test_the_front_has_the_rows_that_none_beats_in_everything():
    good, worse, cheap = row("student"), row("direct", score=0.8), row("pdd", nfe=4, fd_scenes=0.3)
    other = row("lcm", score=0.95, fd_scenes=0.2)
    assert front([good, worse, cheap, other]) == [good, cheap, other]
    assert front([row("student", diversity=1.1), row("pdd")]) == [row("student", diversity=1.1), row("pdd")]


def test_rows_are_compared_under_the_seeds_that_both_have():
    both = Row("student", "8 steps", 8, None, {seed: row("student", score=score).seeds[0] for seed, score in SCORES})
    rival = row("pdd", score=0.91)  # above the student's mean, but not above its score of the same seed
    assert both in front([both, rival])


SCORES = ((0, 0.92), (1, 0.88))


def test_what_only_some_seeds_show_beats_nothing():
    def seeded(arm, *scores):
        return Row(arm, "8 steps", 8, None, {seed: row(arm, score=one).seeds[0] for seed, one in enumerate(scores)})

    good = seeded("student", 0.90, 0.90)
    assert good in front([good, seeded("pdd", 0.89, 0.93)])
    assert good not in front([good, seeded("pdd", 0.91, 0.92)])


def test_the_page_says_who_is_on_the_front_and_shows_typed_answers():
    table = [row("student"), row("pdd", fd_scenes=0.05, score=0.95)]
    text = measured.page([replace(question("rivals"), answer="By a little.")], table)
    assert "- At 8 forwards the student is not on the front, which has PDD from the recording." in text
    assert "| **PDD from the recording** | 8 |" in text and "| Student | 8 |" in text
    assert "**Here:** By a little." in text


def test_a_plot_is_drawn_of_every_row(tmp_path):
    measured.draw([row("student"), row("base_ab2", nfe=16), row("pdd", nfe=4)], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_cost_of_a_training_is_counted_at_the_transformer(tmp_path):
    recorded = record_tiny(tmp_path)
    data, backbone = recorded.loaded(), recorded.backbone()
    (job,) = rivals.RIVALS["single"].jobs(recorded.params, data)
    found = measured.cost(backbone, replace(data, anchors=None), replace(job, anchored=()))
    assert found.forwards == pytest.approx(pair_budget(recorded.params), rel=0.1) and found.seconds > 0


def test_the_shipped_page_is_made_of_the_committed_files():
    defaults = load()
    questions = [grid.load(name, defaults) for name in measured.QUESTIONS]
    found = [(question, measured.results.read(question.name)) for question in questions]
    text = measured.page(questions, rows(found, artifacts.read_json(measured.FILE)))
    assert measured.PAGE.read_text(encoding="utf-8") == text, "run `python -m measurements.rivals --page`"
