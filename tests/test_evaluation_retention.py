import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.scores import retention


def draws(probability, count=400, seed=0):
    return np.random.default_rng(seed).random(count) < probability


def test_wilson_interval_of_eight_in_ten():
    estimate = retention.proportion(np.arange(10) < 8)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.8, 0.4901625, 0.9433178))


@pytest.mark.parametrize("passed", [0, 25])
def test_wilson_interval_has_a_width_where_all_or_none_pass(passed):
    estimate = retention.proportion(np.arange(25) < passed)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.high - estimate.low > 0.1


def test_retention_of_the_teacher_is_one_without_doubt():
    teacher = draws(0.9)
    assert retention.ratio_of_means(teacher, teacher, 200, 0) == retention.Estimate(1, 1, 1)


def test_retention_is_the_ratio_and_its_interval_agrees_with_scipy():
    teacher = draws(0.9)
    arm = np.where(np.arange(400) % 4 == 0, draws(0.5, seed=1), teacher)
    estimate = retention.ratio_of_means(arm, teacher, 4000, 0)
    assert estimate.value == pytest.approx(arm.mean() / teacher.mean())
    reference = stats.bootstrap(
        (arm.astype(float), teacher.astype(float)),
        lambda a, b, axis: a.mean(axis=axis) / b.mean(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert (estimate.low, estimate.high) == pytest.approx((reference.low, reference.high), abs=0.006)


def test_pairing_narrows_the_interval():
    teacher = draws(0.6)
    paired = retention.ratio_of_means(teacher, teacher, 400, 0)
    unpaired = retention.ratio_of_means(draws(0.6, seed=5), teacher, 400, 0)
    assert unpaired.high - unpaired.low > 0.1 > paired.high - paired.low


def test_retention_of_a_teacher_that_passes_nothing_is_undefined():
    assert retention.ratio_of_means(draws(0.5), np.zeros(400, dtype=bool), 100, 0) == retention.UNDEFINED


def test_difference_of_means_has_the_sign_of_the_first():
    low = np.random.default_rng(0).normal(size=300)
    gap = retention.difference_of_means(low + 1, low, 300, 0)
    assert (gap.value, gap.low, gap.high) == pytest.approx((1, 1, 1))


def test_the_same_seed_gives_the_same_interval_whatever_the_chunk(monkeypatch):
    arm, teacher = draws(0.7, seed=3), draws(0.9)
    first = retention.ratio_of_means(arm, teacher, 500, 7)
    assert first == retention.ratio_of_means(arm, teacher, 500, 7)
    monkeypatch.setattr(retention, "RESAMPLES_AT_ONCE", 60)
    assert first != retention.ratio_of_means(arm, teacher, 500, 8), "the draws of one seed alone are kept"
    assert first == retention.ratio_of_means(arm, teacher, 500, 7)


def test_another_seed_draws_other_resamples_and_the_first_seed_the_same_again():
    first, other, again = (retention.resampled_means(draws(0.7)[None], 50, seed) for seed in (1, 2, 1))
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: retention.proportion(np.zeros(0, dtype=bool)), "a score needs at least 1 prompt, got 0"),
        (lambda: retention.resampled_means(np.zeros((2, 3)), 0, 0), "evaluation.bootstrap must be at least 1, got 0"),
        (lambda: retention.resampled_means(np.zeros((2, 0)), 5, 0), "a bootstrap needs at least 1 prompt, got 0"),
    ],
)
def test_nothing_to_average_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
