"""The sizes and crops that scorers read images in, by pictures whose result is known."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.benchmarking.scorers import clip_score, hps, inception, pixels


def numbered(height: int, width: int) -> Image.Image:
    """Red is the row and green the column, both modulo 256; blue tells the sides of 256 apart."""
    rows, columns = np.indices((height, width))
    blue = (rows // 256) * 16 + columns // 256
    return Image.fromarray(np.stack([rows % 256, columns % 256, blue], axis=-1).astype(np.uint8))


def halves(height: int, width: int) -> Image.Image:
    """Black on the left, white on the right."""
    values = np.zeros((height, width, 3), dtype=np.uint8)
    values[:, width // 2 :] = 255
    return Image.fromarray(values)


def colours(x: torch.Tensor) -> torch.Tensor:
    """What was standardised, in [0, 1]."""
    return x * torch.tensor(pixels.CLIP_STD)[:, None, None] + torch.tensor(pixels.CLIP_MEAN)[:, None, None]


def test_an_image_is_read_by_row_column_and_colour():
    x = pixels.read(numbered(5, 9))
    assert x.shape == (3, 5, 9) and x.dtype == torch.float32
    assert (x[:, 4, 7] * 255).tolist() == [4, 7, 0]
    assert pixels.read(Image.new("L", (2, 2), 255)).unique().tolist() == [1]


@pytest.mark.parametrize(
    "shape, top, left", [((299, 299), 0, 0), ((300, 301), 0, 1), ((310, 305), 5, 3), ((700, 304), 200, 2)]
)
def test_a_patch_is_the_middle_of_the_image_as_it_is(shape, top, left):
    image = numbered(*shape)
    expected = np.asarray(image)[top : top + 299, left : left + 299].transpose(2, 0, 1)
    np.testing.assert_array_equal(inception.patch(image).numpy(), expected)


@pytest.mark.parametrize("size", [(298, 299), (512, 64)])
def test_a_patch_of_a_smaller_image_is_refused(size):
    rule = "inception_patch needs images of at least 299 x 299 pixels"
    with pytest.raises(ValueError, match=f"{rule}, got width {size[0]} and height {size[1]}$"):
        inception.patch(Image.new("RGB", size))


def test_an_image_that_has_inception_s_size_already_is_unchanged():
    values = np.random.default_rng(0).integers(0, 256, (299, 299, 3), dtype=np.uint8)
    np.testing.assert_array_equal(inception.whole(Image.fromarray(values)).numpy(), values.transpose(2, 0, 1))


def test_every_grey_keeps_its_value_at_inception_s_size():
    for grey in range(0, 256, 15):
        assert inception.whole(Image.new("RGB", (64, 48), (grey,) * 3)).unique().tolist() == [grey]


def test_a_whole_image_is_smoothed_when_it_is_made_smaller():
    """Stripes of two pixels at a fourth of the size are grey; without antialiasing only the white ones are seen."""
    stripes = np.zeros((1196, 1196, 3), dtype=np.uint8)
    stripes[:, 1::4] = stripes[:, 2::4] = 255
    found = inception.whole(Image.fromarray(stripes))[:, 4:-4, 4:-4]
    assert found.dtype == torch.uint8 and 126 <= found.min() and found.max() <= 129


def test_overshoots_of_the_interpolation_are_cut():
    for found in (inception.whole(halves(64, 64)), inception.whole(halves(1000, 1000))):
        assert found.min() == 0 and found.max() == 255
    found = colours(clip_score.prepare(halves(400, 400)))
    assert found.min() > -1e-6 and found.max() < 1 + 1e-6
    assert colours(hps.prepare(halves(400, 400))).max() > 1.01  # as the official code


@pytest.mark.parametrize("shape", [(672, 1344), (100, 200), (336, 336), (50, 500)])
def test_clip_sees_the_middle_square(shape):
    found = clip_score.prepare(halves(*shape))
    assert found.shape == (3, 336, 336) and found.dtype == torch.float32
    seen = colours(found)[0, 168]
    assert seen[:150].max() < 0.05 and seen[186:].min() > 0.95


@pytest.mark.parametrize(
    "size, top, left, height, width",
    [
        ((448, 224), 56, 0, 112, 224),
        ((224, 448), 0, 56, 224, 112),
        ((224, 101), 61, 0, 101, 224),  # an odd rest: one row more below, one column more on the right
        ((101, 224), 0, 61, 224, 101),
        ((100, 100), 0, 0, 224, 224),
        ((1024, 768), 28, 0, 168, 224),
    ],
)
def test_hps_sees_the_whole_image_with_black_around_it(size, top, left, height, width):
    found = colours(hps.prepare(Image.new("RGB", size, "white")))
    expected = torch.zeros(3, 224, 224)
    expected[:, top : top + height, left : left + width] = 1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_colours_are_standardised_by_openai_s_numbers():
    found = pixels.standardise(torch.ones(3, 1, 1)).flatten()
    torch.testing.assert_close(found, torch.tensor([1.93033625, 2.07488384, 2.14589699]))
