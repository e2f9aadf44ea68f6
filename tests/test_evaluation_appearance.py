"""Colour and detail of pictures whose shift, contrast or blur is known."""

import numpy as np
import pytest

from pipeline.evaluation.scores import appearance, results

SIDE = 64


def compared(images, teacher):
    """The columns of one arm of metrics.json."""
    return results._look(appearance.appearance(images), appearance.appearance(teacher))


def noise(count=4, low=60, high=180, seed=0):
    return np.random.default_rng(seed).integers(low, high, (count, SIDE, SIDE, 3), dtype=np.uint8)


def grey(plane):
    """One grey picture of a plane (H, W) of levels."""
    return np.repeat(np.round(plane)[None, :, :, None], 3, axis=3).astype(np.uint8)


def wave(cycles_per_pixel, amplitude=100.0):
    """A wave along the rows around mid-grey, not rounded."""
    x = np.arange(SIDE)
    return np.broadcast_to(128 + amplitude * np.cos(2 * np.pi * cycles_per_pixel * x), (SIDE, SIDE))


def test_an_arm_that_makes_the_teachers_images_has_no_shift():
    assert compared(noise(), noise()) == {"brightness_shift": 0, "chroma_shift": 0, "contrast": 1, "detail": 1}


@pytest.mark.parametrize("levels", [7, -7])
def test_a_brighter_picture_has_that_shift_and_nothing_else(levels):
    found = compared((noise().astype(int) + levels).astype(np.uint8), noise())
    assert found == pytest.approx({"brightness_shift": levels, "chroma_shift": 0, "contrast": 1, "detail": 1})


def test_half_the_contrast_is_a_quarter_of_the_energy():
    teacher = grey(128 + 2 * np.random.default_rng(0).integers(-50, 50, (SIDE, SIDE)))
    mean = teacher.astype(int)
    found = compared(grey((mean[0, :, :, 0] + 128) / 2), teacher)
    assert found["contrast"] == pytest.approx(0.5) and found["detail"] == pytest.approx(0.25)


def test_grey_pictures_have_no_chroma_and_primaries_that_of_rec_709():
    images = np.zeros((4, SIDE, SIDE, 3), dtype=np.uint8)
    images[0], images[1, ..., 0], images[2, ..., 1], images[3, ..., 2] = 77, 255, 255, 255
    found = appearance.appearance(images)
    np.testing.assert_allclose(found.brightness, [77, 0.2126 * 255, 0.7152 * 255, 0.0722 * 255])
    red, blue = np.hypot(0.2126 / 1.8556, 0.5) * 255, np.hypot(0.0722 / 1.5748, 0.5) * 255  # Cr and Cb reach a half
    green = 0.7152 * np.hypot(1 / 1.8556, 1 / 1.5748) * 255
    np.testing.assert_allclose(found.chroma, [0, red, green, blue], atol=1e-9)
    np.testing.assert_allclose((found.contrast, found.detail), 0, atol=1e-9)


def test_a_greyer_picture_loses_chroma_and_keeps_its_brightness():
    teacher = np.full((1, SIDE, SIDE, 3), (200, 100, 0), dtype=np.uint8)
    luma = 0.2126 * 200 + 0.7152 * 100
    half = np.round((teacher + luma) / 2).astype(np.uint8)
    found, chroma = compared(half, teacher), appearance.appearance(teacher).chroma[0]
    assert found["chroma_shift"] == pytest.approx(-chroma / 2, abs=0.5)
    assert found["brightness_shift"] == pytest.approx(0, abs=0.5)
    assert found["contrast"] is None and found["detail"] is None, "the teacher's image is flat"


@pytest.mark.parametrize("frequency", [20 / 64, 0.375, 0.45])
def test_the_detail_of_a_wave_is_its_variance_and_a_blur_of_two_pixels_has_its_known_gain(frequency):
    sharp = wave(frequency)
    assert appearance.appearance(grey(sharp)).detail[0] == pytest.approx(100**2 / 2, rel=0.01)
    blurred = 128 + np.cos(np.pi * frequency) * (wave(frequency) - 128)  # the mean of two neighbours, moved by half
    assert compared(grey(blurred), grey(sharp))["detail"] == pytest.approx(np.cos(np.pi * frequency) ** 2, rel=0.03)


def test_a_blur_that_halves_the_energy_halves_the_detail():
    """Every frequency above half of Nyquist is weakened by sqrt(1/2), in white noise."""
    teacher = np.random.default_rng(0).integers(60, 180, (SIDE, SIDE)).astype(float)
    f = np.fft.fftfreq(SIDE)
    gain = np.where(np.hypot(f[:, None], f[None]) > 0.25, np.sqrt(0.5), 1)
    found = compared(grey(np.fft.ifft2(gain * np.fft.fft2(teacher)).real), grey(teacher))
    assert found["detail"] == pytest.approx(0.5, rel=0.03)
    assert found["contrast"] == pytest.approx(np.sqrt(1 - 0.5 * (1 - np.pi / 16)), rel=0.02)
    assert found["brightness_shift"] == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("frequency", [1 / 64, 0.1, 0.2])
def test_a_coarse_wave_has_no_detail(frequency):
    found = appearance.appearance(grey(wave(frequency)))
    assert found.contrast[0] == pytest.approx(100 / np.sqrt(2), rel=0.05)
    assert found.detail[0] < 1e-3 * found.contrast[0] ** 2


def test_opposite_edges_that_differ_are_no_detail():
    ramp = grey(np.broadcast_to(np.linspace(0, 255, SIDE), (SIDE, SIDE)))
    found = appearance.appearance(ramp)
    assert found.detail[0] < 1e-4 * found.contrast[0] ** 2


def test_the_detail_of_white_noise_is_the_share_of_the_spectrum_beyond_the_circle():
    found = appearance.appearance(grey(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE))))
    assert found.detail[0] / found.contrast[0] ** 2 == pytest.approx(1 - np.pi / 16, rel=0.05)


def test_the_numbers_are_the_same_in_any_chunk_and_after_joining(monkeypatch):
    whole = appearance.appearance(noise(5))
    monkeypatch.setattr(appearance, "CHUNK", 2)
    parts = appearance.concat([appearance.appearance(noise(5)[:1]), appearance.appearance(noise(5)[1:])])
    for found in (appearance.appearance(noise(5)), parts):
        for name, values in vars(whole).items():
            np.testing.assert_array_equal(getattr(found, name), values)
    assert appearance.appearance(noise(0)).detail.shape == (0,)


@pytest.mark.parametrize("images", [np.zeros((1, 16, 16, 3)), noise(1)[0], np.zeros((1, 16, 16, 4), dtype=np.uint8)])
def test_what_is_no_image_is_refused(images):
    with pytest.raises(ValueError, match=r"images must be uint8 of shape \(N, H, W, 3\), got (float64|uint8) \("):
        appearance.appearance(images)


def test_shifts_are_signed_means_and_ratios_are_of_means():
    own, teacher = np.array([1.0, 9.0]), np.array([3.0, 5.0])
    assert appearance.shift(own, teacher) == 1 and appearance.ratio(own, teacher) == 10 / 8
    assert appearance.ratio(own, np.zeros(2)) is None
