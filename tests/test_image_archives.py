import errno
import resource
from zipfile import ZipFile

import numpy as np
import pytest

from pipeline import image_archives


def test_packed_images_come_back_and_give_the_same_bytes(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 6, 3), dtype=np.uint8)
    for name in ("a.zip", "b.zip"):
        image_archives.pack(tmp_path / name, images, range(7, 10))
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == ["7.png", "8.png", "9.png"], "what any program for archives can open"
    np.testing.assert_array_equal(image_archives.unpack(tmp_path / "a.zip"), images)
    assert image_archives.intact(tmp_path / "a.zip", range(7, 10))


def test_damage_anywhere_in_an_archive_is_noticed(tmp_path):
    file, images = tmp_path / "a.zip", np.random.default_rng(0).integers(0, 256, (2, 2, 2, 3), dtype=np.uint8)
    image_archives.pack(file, images, range(2))
    whole = file.read_bytes()
    flipped = (whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :] for i in range(len(whole)))
    for damaged in (b"", b"images", whole[:-10], whole[:60], *flipped):
        file.write_bytes(damaged)
        if image_archives.intact(file, range(2)):
            np.testing.assert_array_equal(image_archives.unpack(file), images)  # a date, for one, shows nothing
            continue
        try:
            image_archives.unpack(file)
        except ValueError as error:
            assert str(error).startswith(f"{file} is no archive of images (")


def test_a_missing_archive_is_named(tmp_path):
    assert not image_archives.intact(tmp_path / "a.zip", [])
    with pytest.raises(FileNotFoundError, match="a.zip"):
        image_archives.unpack(tmp_path / "a.zip")


def test_an_archive_of_something_else_is_refused(tmp_path):
    with ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("7.png", "no picture")
    with pytest.raises(ValueError, match="a.zip is no archive of images"):
        image_archives.unpack(tmp_path / "a.zip")


def test_an_archive_that_does_not_fit_on_the_disk_leaves_nothing(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3), dtype=np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    try:
        with pytest.raises(OSError) as refusal:
            image_archives.pack(tmp_path / "a.zip", noise, [0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refusal.value.errno == errno.EFBIG and refusal.value.filename == str(tmp_path / "a.zip")
    assert list(tmp_path.iterdir()) == []
