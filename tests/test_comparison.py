"""An arm's number beside the teacher's, and its interval."""

from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.benchmarking import comparison
from pipeline.evaluation.benchmarks import Column
from pipeline.evaluation.benchmarks.official import Item, Metric, OfficialBenchmark, Source, Value, by_prompt
from pipeline.evaluation.benchmarks.statistics import Statistic, mean, mean_of_categories, ratio_of_sums
from pipeline.evaluation.scores import retention

SETTINGS = SimpleNamespace(bootstrap=4000, seed=0)


def metric(statistic: Statistic = mean, **more) -> Metric:
    """A metric of the field `x`."""
    return Metric(column=Column("x", "x", 2), scorer="s", fields=("x",), statistic=statistic, **more)


def rows(seed: int, count: int = 200) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.2, 1, (count, 1))


def test_a_mean_has_the_interval_of_the_evaluations_own_bootstrap():
    ours, theirs = rows(0), rows(1)
    found = comparison.metric(metric(), ours, theirs, np.zeros(200, dtype=np.int64), SETTINGS)
    known = retention.ratio_of_means(ours[:, 0], theirs[:, 0], 4000, 0)
    assert found["retention"] == pytest.approx(known.value, abs=1e-12)
    assert found["retention_low"] == pytest.approx(known.low, abs=0.005)
    assert found["retention_high"] == pytest.approx(known.high, abs=0.005)


def test_the_categories_of_a_plain_mean_do_not_narrow_its_interval():
    ours, categories = np.concatenate([np.zeros((100, 1)), np.ones((100, 1))]), np.repeat([0, 1], 100)
    plain = comparison.metric(metric(), ours, None, categories, SETTINGS)
    within = comparison.metric(metric(mean_of_categories), ours, None, categories, SETTINGS)
    assert plain["low"] < 0.45 and plain["high"] > 0.55, "the share of the two kinds is drawn too"
    assert (within["low"], within["high"]) == (0.5, 0.5), "each kind is drawn from itself"


def test_categories_of_other_sizes_count_alike():
    ours, categories = np.concatenate([np.ones((10, 1)), np.zeros((90, 1))]), np.repeat([0, 1], [10, 90])
    assert comparison.metric(metric(mean_of_categories), ours, None, categories, SETTINGS)["value"] == 0.5
    assert comparison.metric(metric(), ours, None, categories, SETTINGS)["value"] == pytest.approx(0.1)


def test_a_ratio_of_sums_weighs_long_texts_more():
    ours = np.array([[1.0, 1.0], [0.0, 9.0], [1.0, 1.0], [0.0, 9.0]])
    assert comparison.metric(metric(ratio_of_sums), ours, ours, np.zeros(4, dtype=np.int64), SETTINGS)["value"] == 0.1


def test_a_category_of_one_prompt_gives_no_interval():
    found = comparison.metric(metric(mean_of_categories), rows(0, 2), rows(1, 2), np.array([0, 1]), SETTINGS)
    assert found.keys() == {"value", "teacher", "difference", "retention"}


def test_an_arm_that_is_the_teacher_keeps_all_of_it_in_every_draw():
    found = comparison.metric(metric(), rows(0), rows(0), np.zeros(200, dtype=np.int64), SETTINGS)
    assert (found["retention_low"], found["retention"], found["retention_high"]) == (1, 1, 1)


def test_a_teacher_without_a_point_has_no_retention():
    found = comparison.metric(metric(), rows(0), np.zeros((200, 1)), np.zeros(200, dtype=np.int64), SETTINGS)
    assert "retention" not in found and found["difference"] == found["value"]


def test_the_rows_of_prompts_are_means_over_their_images():
    items = [Item(id=name, prompt=name, category=name[0]) for name in ("a1", "a2", "b1")]
    said = [Value(item=item.id, seed=seed, fields={"x": i + seed}) for i, item in enumerate(items) for seed in range(2)]
    numbers, categories = by_prompt(metric(), said, items)
    assert numbers.tolist() == [[0.5], [1.5], [2.5]] and categories.tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match="s must have a value for each of 3 prompts, got none for 1, .* is b1"):
        by_prompt(metric(), said[:4], items)
    numbers, _ = by_prompt(metric(lost=("b1",)), said[:4], items)
    assert len(numbers) == 2
    with pytest.raises(ValueError, match=r"s: a1 must have x, got \['y'\]"):
        by_prompt(metric(), [Value(item="a1", seed=0, fields={"y": 1})], items)


def test_a_limit_takes_the_first_prompts_of_each_category():
    items = [Item(id=str(i), prompt="", category="ab"[i % 2]) for i in range(7)]
    source = Source(site="local", files=(), licence="")
    benchmark = OfficialBenchmark(
        name="n", title="n", about="", source=source, parse=lambda files: items, counts={}, seeds=1
    )
    assert [item.id for item in benchmark.first(items, 2)] == ["0", "1", "2", "3"]
    assert benchmark.first(items, None) == items
