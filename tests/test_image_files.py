import re

import numpy as np
import pytest
from PIL import Image

from pipeline import image_files

IMAGES = [np.full((2, 2, 3), value, dtype=np.uint8) for value in (1, 2, 3)]
TEXTS = {"parameters": "a caf\u00e9 \u661f\nSteps: 8", "glance": '{"seed": 1}'}


def tiled(count):
    grid = image_files.Grid(count, 2, 2)
    for number, image in enumerate(IMAGES[:count]):
        grid.place(number, image)
    return grid.image


def test_a_grid_is_filled_row_by_row_and_one_image_is_itself():
    assert tiled(3)[::2, ::2, 0].tolist() == [[1, 2], [3, 0]]
    assert tiled(2)[::2, ::2, 0].tolist() == [[1, 2]]
    assert np.array_equal(tiled(1), IMAGES[0])


def test_a_grid_that_no_viewer_opens_is_refused():
    assert image_files.Grid(121, 1024, 1024).columns == 11
    sentence = f"a grid must have at most {2**27} pixels, got {11 * 12 * 2**20} of 122 images of 1024 x 1024: "
    with pytest.raises(ValueError, match=re.escape(sentence)):
        image_files.Grid(122, 1024, 1024)


def test_names_sort_by_number_and_are_unique():
    assert image_files.names(["A star, on black", "\u661f"]) == ["000-a-star-on-black.png", "001.png"]
    assert image_files.names(["a star"] * 1000)[-1] == "999-a-star.png"
    many = image_files.names(["a star", "\u661f"] * 501)
    assert many[0] == "0000-a-star.png" and many[-1] == "1001.png"
    assert sorted(many) == many and len(set(many)) == 1002
    assert all(len(name) <= 68 for name in image_files.names(["x" * 300]))


def test_a_file_has_the_images_pixels_and_its_texts(tmp_path):
    file = tmp_path / "out" / "a.png"
    image_files.save(IMAGES[1], file, TEXTS)
    assert np.array_equal(image_files.read(file), IMAGES[1])
    assert image_files.texts(file) == Image.open(file).text == TEXTS
    first = file.read_bytes()
    image_files.save(IMAGES[1], file, TEXTS)
    assert file.read_bytes() == first, "nothing in it varies from run to run"


def test_a_file_that_is_missing_or_broken_has_no_texts(tmp_path):
    file = tmp_path / "a.png"
    assert image_files.texts(file) == {} and image_files.texts(tmp_path) == {}
    image_files.save(IMAGES[0], file, TEXTS)
    whole = file.read_bytes()
    for end in range(0, len(whole) - 4):
        file.write_bytes(whole[:end])
        assert image_files.texts(file) == {}, f"cut after {end} bytes"
    for place in range(len(whole) - 12):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert image_files.texts(file) == {}, f"changed at byte {place}"
    Image.fromarray(IMAGES[0]).save(file, format="JPEG")
    assert image_files.texts(file) == {}
