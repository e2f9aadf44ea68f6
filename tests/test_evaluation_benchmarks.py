"""The columns of a benchmark are what is measured, and what every table, verdict and tag is made of."""

import numpy as np
import pytest

from pipeline.ablations import document, results
from pipeline.evaluation import recipes, timing
from pipeline.evaluation.arms import ShownArm
from pipeline.evaluation.benchmarks import PAIRED, PLAIN, Column
from pipeline.evaluation.benchmarks.appearance import APPEARANCE
from pipeline.evaluation.benchmarks.scenes import SCENES
from pipeline.evaluation.benchmarks.speed import SPEED
from pipeline.evaluation.latency import Latency
from pipeline.evaluation.report import cells, verdicts
from pipeline.evaluation.scores import results as tables
from pipeline.evaluation.scores.appearance import Appearance
from pipeline.evaluation.scores.measure import Measured
from pipeline.registry.registering import HEADLINE


@pytest.fixture
def measured():
    """Three arms over 200 prompts, at random."""
    rng = np.random.default_rng(0)
    return {
        name: Measured(
            rng.random(200) < 0.8,
            rng.random(200),
            rng.random(200),
            rng.random((200, 4)),
            rng.random(3),
            Appearance(*rng.random((4, 200))),
        )
        for name in ("teacher", "student", "base_guided")
    }


def test_every_number_of_an_arm_is_a_column(measured):
    shown = [ShownArm(name, 4, 4, name, "?") for name in measured]
    rows = tables.arm_rows(shown, measured, resamples=100, seed=0)
    keys = {key for column in (*SCENES.columns, *APPEARANCE) for key in column.keys}
    for row in rows.values():
        assert row.keys() == keys | {"steps"}
    paired = {column.key for column in SCENES.columns if column.compared == PAIRED}
    assert tables.comparisons(measured, 100, 0)["base_guided"].keys() == paired
    times = timing.row("teacher", {batch: {"teacher": Latency(1.0, 2.0)} for batch in timing.LATENCY_BATCHES})
    assert {column.key for column in SPEED} <= times.keys()


def test_tags_and_tables_are_made_of_the_columns():
    assert set(HEADLINE) >= {
        "retention",
        "retention_low",
        "retention_high",
        "score",
        "nfe",
        "speedup_batch1",
    }
    assert list(results.METRICS) == [column.key for column in (*SCENES.columns, *APPEARANCE, *SPEED)]
    assert document.COLUMNS == ("nfe", "retention", "psnr", "ssim", "fd_scenes", "diversity")
    assert SCENES.main in SCENES.columns and SCENES.main.interval


@pytest.mark.parametrize(
    ("key", "value", "label", "cell"),
    [
        ("nfe", 8, "Forwards", "8"),
        ("score", 0.9127, "Score", "91.3\u202f%"),
        ("psnr", 31.87, "PSNR, dB", "31.9"),
        ("fd_scenes", 0.06317, "fd_scenes", "0.063"),
        ("speedup_batch1", 9.26, "Speed-up, batch 1", "9.3×"),
        ("psnr", None, "PSNR, dB", "–"),
        ("chroma_shift", -1.234, "Chroma shift", "-1.23"),
        ("detail", None, "Detail", "–"),
    ],
)
def test_a_column_says_how_it_is_written(key, value, label, cell):
    column = results.METRICS[key]
    assert (cells.column_label(column), cells.value_cell(column, value)) == (label, cell)


@pytest.mark.parametrize(("better", "ahead"), [("higher", True), ("lower", False)])
def test_a_direction_says_which_value_is_ahead(better, ahead):
    column = Column("x", "x", 1, better=better, compared=PLAIN)
    assert column.ahead(2.0, 1.0) is ahead and column.ahead(1.0, 2.0) is not ahead


def gap(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


@pytest.mark.parametrize(
    ("psnr", "distance", "outcome", "words"),
    [
        (1.0, 0.5, "won", "ahead in PSNR, fd_scenes."),
        (0.05, 0.5, "open", "ahead in fd_scenes; no clear difference in PSNR."),
        (-1.0, 2.0, "lost", "behind in PSNR, fd_scenes."),
        (-1.0, None, "lost", "behind in PSNR."),
    ],
)
def test_a_verdict_counts_the_columns_that_are_compared_and_measured(psnr, distance, outcome, words):
    rows = {name: {"nfe": 8, "fd_scenes": 1.0} for name in verdicts.RIVALS} | {"student": {"fd_scenes": distance}}
    metrics = {"arms": rows, "comparisons": {name: {"psnr": gap(psnr)} for name in verdicts.RIVALS}}
    shown = [ShownArm(recipe.name, 8, 8, recipe.title, recipe.question) for recipe in recipes.recipes()]
    for found, sentence in verdicts.verdicts(metrics, shown):
        assert found == outcome and sentence.endswith(f"(8 forwards): {words}")
