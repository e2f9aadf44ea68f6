import numpy as np
import pytest

from pipeline.evaluation.scores import frechet, metrics


def noise_images(count, side=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def pattern_pair():
    """Two smooth patterns of 32 x 40 pixels whose SSIM scikit-image was asked for."""
    y, x = np.mgrid[0:32, 0:40]
    first = np.stack([x * 6 % 256, (y * 7 + x) % 256, x * y % 256], -1).astype(np.uint8)
    second = np.stack([(x * 6 + y) % 256, (y * 7 + x + 20) % 256, (x * y + 3 * x) % 256], -1).astype(np.uint8)
    return first[None], second[None]


def test_psnr_of_a_difference_of_one_grey_level():
    images = np.full((2, 16, 16, 3), 100, dtype=np.uint8)
    images[1] += 1
    np.testing.assert_allclose(metrics.psnr(images, images[[0, 0]]), [10 * np.log10(255**2 * 12), 48.1308], rtol=1e-5)


def test_psnr_is_the_same_in_any_chunk(monkeypatch):
    images, reference = noise_images(5), noise_images(5, seed=1)
    whole = metrics.psnr(images, reference)
    monkeypatch.setattr(metrics, "CHUNK", 2)
    np.testing.assert_array_equal(metrics.psnr(images, reference), whole)


def test_ssim_equals_scikit_image():
    # skimage 0.26: structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255)
    first, second = pattern_pair()
    assert metrics.ssim(first, second)[0] == pytest.approx(0.6868378538438469, abs=2e-6)


def test_ssim_is_one_for_equal_images_and_symmetric():
    first, second = noise_images(3), noise_images(3, seed=1)
    np.testing.assert_allclose(metrics.ssim(first, first), 1, atol=1e-5)
    np.testing.assert_allclose(metrics.ssim(first, second), metrics.ssim(second, first), atol=1e-6)
    assert metrics.ssim(first, second).max() < 0.2


def test_seed_spread_of_constant_images():
    grey = np.array([0, 30, 60], dtype=np.uint8)
    images = np.broadcast_to(grey[None, :, None, None, None], (2, 3, 8, 8, 3))
    np.testing.assert_allclose(metrics.seed_spread(images), [40, 40])  # the mean of 30, 30 and 60


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: metrics.psnr(np.zeros((1, 16, 16, 3)), noise_images(1)), "images must be uint8 .* got float64"),
        (lambda: metrics.ssim(noise_images(1), noise_images(2)), r"images must have the shape of their reference \(2,"),
        (lambda: metrics.ssim(noise_images(1, 8), noise_images(1, 8)), "ssim needs images of at least 11 pixels"),
        (lambda: metrics.seed_spread(noise_images(3)), "images must be uint8 of shape .P, S, H, W, 3., got uint8"),
        (lambda: metrics.seed_spread(noise_images(3)[:, None]), "evaluation.diversity_seeds must be at least 2, got 1"),
        (lambda: frechet.features(noise_images(1)[0]), "images must be uint8 of shape .N, H, W, 3., got uint8"),
        (lambda: frechet.frechet_distance(np.zeros((3, 2)), np.zeros((3, 4))), "same dimension, got .2,. and .4,."),
    ],
)
def test_wrong_images_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_features_are_finite_and_of_the_stated_dimension():
    for images in (noise_images(3), noise_images(2, 160), np.zeros((2, 64, 64, 3), dtype=np.uint8)):
        values = frechet.features(images)
        assert values.shape == (len(images), frechet.DIMENSION) and np.isfinite(values).all()
    assert frechet.features(noise_images(0)).shape == (0, frechet.DIMENSION)


def test_features_tell_a_shape_from_its_place_and_its_turn():
    upright = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    upright[:, 20:44, 30:34] = 255
    lying, moved = upright.transpose(0, 2, 1, 3), np.roll(upright, 20, axis=2)
    base, turned, shifted = (frechet.features(images) for images in (upright, lying, moved))
    outline = slice(48, 84)
    assert np.abs(base - turned)[:, outline].max() > 0.05
    assert np.abs(base - shifted)[:, :48].max() > 0.1


def test_frechet_distance_of_a_set_to_itself_is_zero():
    values = np.random.default_rng(0).normal(size=(200, 6))
    assert frechet.frechet_distance(values, values) == pytest.approx(0, abs=1e-8)


def test_frechet_distance_of_a_shift_and_a_stretch_is_analytic():
    reference = np.random.default_rng(0).normal(size=(300, 5)) * [1, 2, 3, 4, 50]
    std, mean = reference.std(axis=0), reference.mean(axis=0)
    shifted = reference + 2 * std * [1, 0, 0, 0, 0]
    assert frechet.frechet_distance(shifted, reference) == pytest.approx(4)
    stretched = mean + 3 * (reference - mean)  # sum of (3 s - s)^2 over five unit variances, by N / (N - 1)
    assert frechet.frechet_distance(stretched, reference) == pytest.approx(5 * 4 * 300 / 299)


def test_frechet_distance_needs_two_images():
    assert frechet.frechet_distance(np.zeros((1, 3)), np.zeros((5, 3))) is None


def test_the_distance_of_two_gaussians_is_that_of_their_formula():
    """Covariances that do not commute: tr (A B)^1/2 = (tr A B + 2 (det A B)^1/2)^1/2 for 2 x 2."""
    a, b = np.array([[2.0, 1], [1, 3]]), np.array([[4.0, -1], [-1, 1]])
    first = frechet.Gaussian(mean=np.array([1.0, 2]), covariance=a)
    second = frechet.Gaussian(mean=np.array([4.0, -2]), covariance=b)
    product = a @ b
    overlap = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = 25 + 5 + 5 - 2 * overlap
    assert frechet.between(first, second) == pytest.approx(expected)
    assert frechet.between(second, first) == pytest.approx(expected)
