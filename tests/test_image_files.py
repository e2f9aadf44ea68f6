import numpy as np
from PIL import Image

from pipeline import image_files

IMAGES = [np.full((2, 2, 3), value, dtype=np.uint8) for value in (1, 2, 3)]


def test_a_grid_is_filled_row_by_row():
    assert image_files.tile(IMAGES)[::2, ::2, 0].tolist() == [[1, 2], [3, 0]]


def test_one_file_is_the_image_or_a_grid_of_several(tmp_path):
    for count, size in ((1, (2, 2)), (3, (4, 4))):
        (path,) = image_files.write(IMAGES[:count], ["a star"] * count, tmp_path / "all.png", grid=False)
        assert Image.open(path).size == size


def test_a_folder_gets_a_file_per_prompt_and_the_grid_if_asked(tmp_path):
    paths = image_files.write(IMAGES[:2], ["A star, on black", "星"], tmp_path / "out", grid=True)
    assert [path.name for path in paths] == ["000-a-star-on-black.png", "001.png", "grid.png"]
    assert np.array_equal(np.asarray(Image.open(paths[0])), IMAGES[0])
