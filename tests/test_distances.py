"""FID and KID against their formulas; tests/scorers compares them with torch-fidelity."""

import numpy as np
import pytest

from pipeline.benchmarking import distances
from pipeline.evaluation.scores import frechet


def with_moments(mean: list[float], covariance: list[list[float]], seed: int, rows: int = 50) -> np.ndarray:
    """Features whose sample mean and covariance are exactly these."""
    raw = np.random.default_rng(seed).normal(size=(rows, len(mean)))
    raw -= raw.mean(axis=0)
    white = np.linalg.solve(np.linalg.cholesky(np.cov(raw, rowvar=False)), raw.T).T
    return white @ np.linalg.cholesky(np.array(covariance)).T + mean


def test_fid_of_sets_with_known_moments_is_analytic():
    features = with_moments([0, 1], [[4, 0], [0, 9]], seed=0)
    reference = with_moments([3, 5], [[1, 0], [0, 25]], seed=1, rows=80)
    assert distances.fid(features, reference) == pytest.approx(9 + 16 + (2 - 1) ** 2 + (3 - 5) ** 2)


def test_fid_is_not_scaled_by_the_reference():
    features, reference = np.random.default_rng(0).normal(size=(2, 60, 3)) * [1, 5, 9]
    assert distances.fid(2 * features, 2 * reference) == pytest.approx(4 * distances.fid(features, reference))
    assert distances.fid(features, reference) != pytest.approx(frechet.frechet_distance(features, reference))


def test_fid_of_fewer_images_than_features_is_finite():
    features, reference = np.random.default_rng(0).normal(size=(2, 8, 40)).astype(np.float32)
    assert 0 < distances.fid(features, reference) < np.inf
    assert distances.fid(features, features) == pytest.approx(0, abs=1e-6)


def test_distances_of_float32_features_are_computed_in_float64():
    features, reference = np.random.default_rng(0).normal(10, 1, size=(2, 30, 8)).astype(np.float32)
    wide = features.astype(np.float64), reference.astype(np.float64)
    assert distances.fid(features, reference) == distances.fid(*wide)
    assert distances.kid(features, reference, 10, 5, seed=0) == distances.kid(*wide, 10, 5, seed=0)


def test_kid_of_two_points_each_is_computed_by_hand():
    """k(x, y) = (x y + 1)^3: within {0, 1} it is 1, within {1, 2} it is 27, and (1 + 1 + 8 + 27) / 4 between them."""
    features, reference = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])
    expected = 1 + 27 - 2 * 37 / 4
    assert distances.kid(features, reference, 2, 3, seed=0) == pytest.approx((expected, 0))
    wide = [np.repeat(rows, 4, axis=1) for rows in (features, reference)]  # x y / D stays
    assert distances.kid(*wide, 2, 3, seed=0) == pytest.approx((expected, 0))


def test_kid_is_the_mean_and_the_spread_over_subsets():
    features, reference = np.random.default_rng(0).normal(size=(2, 40, 5))
    mean, spread = distances.kid(features, reference, 10, 50, seed=1)
    assert (mean, spread) == distances.kid(features, reference, 10, 50, seed=1)
    assert (mean, spread) != distances.kid(features, reference, 10, 50, seed=2)
    assert abs(mean) < 3 * spread / np.sqrt(50)  # unbiased: 0 for sets of one distribution
    assert distances.kid(features + 1, reference, 10, 50, seed=1)[0] > 10 * spread


def test_the_difference_of_an_arm_to_itself_is_zero():
    features, reference = np.random.default_rng(0).normal(size=(2, 40, 3))
    found = distances.fid_difference(features, features, reference, seed=0)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_the_difference_is_that_of_the_two_fids_and_lies_in_its_interval():
    arm, teacher, reference = np.random.default_rng(0).normal(size=(3, 60, 3)) * [[[1]], [[1.5]], [[2]]]
    found = distances.fid_difference(arm, teacher, reference, seed=0)
    assert found.value == pytest.approx(distances.fid(arm, reference) - distances.fid(teacher, reference))
    assert found.low < found.value < found.high
    turned = distances.fid_difference(teacher, arm, reference, seed=0)
    assert (turned.value, turned.low, turned.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_the_interval_is_as_wide_as_the_spread_over_new_prompts():
    generator = np.random.default_rng(0)
    reference = generator.normal(size=(2000, 2))

    def difference(seed: int):
        prompts = np.random.default_rng(seed).normal(size=(200, 2))
        return distances.fid_difference(
            prompts + 1, 2 * prompts, reference, subsamples=200 if seed == 0 else 2, seed=seed
        )

    spread = np.std([difference(seed).value for seed in range(1, 201)])
    found = difference(0)
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(spread, rel=0.25)


ROWS = np.random.default_rng(0).normal(size=(6, 3))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: distances.fid(ROWS, ROWS[:, :2]), r"same features, got the shapes \(6, 3\) and \(6, 2\)"),
        (lambda: distances.fid(ROWS[:1], ROWS), r"2 or more rows .* got the shapes \(1, 3\) and \(6, 3\)"),
        (lambda: distances.fid(ROWS[0], ROWS[0]), r"fid needs two sets .* got the shapes \(3,\) and \(3,\)"),
        (lambda: distances.fid(ROWS * np.nan, ROWS), "fid needs features that are finite, got NaN or infinity"),
        (lambda: distances.kid(ROWS, ROWS[:4], 5, 1, 0), "kid needs subsets of 2 to 4 rows, .* got 1 of 5 rows"),
        (lambda: distances.kid(ROWS, ROWS, 1, 1, 0), "kid needs subsets of 2 to 6 rows, .* got 1 of 1 rows"),
        (lambda: distances.kid(ROWS, ROWS, 2, 0, 0), "kid needs subsets .* got 0 of 2 rows"),
        (lambda: distances.kid(ROWS, ROWS * np.inf, 2, 1, 0), "kid needs features that are finite"),
        (lambda: distances.fid_difference(ROWS, ROWS[:5], ROWS, seed=0), "got 6 and 5 prompts and 20 subsamples"),
        (lambda: distances.fid_difference(ROWS[:3], ROWS[:3], ROWS, seed=0), "4 or more prompts .* got 3 and 3"),
        (lambda: distances.fid_difference(ROWS, ROWS, ROWS, subsamples=1, seed=0), "got 6 and 6 prompts and 1 subs"),
    ],
)
def test_features_that_have_no_distance_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
