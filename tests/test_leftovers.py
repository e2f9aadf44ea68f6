"""What lies under .glance and can be made again is limited, and removed when asked."""

import os
import time
from dataclasses import replace

import pytest
from click.testing import CliRunner

from pipeline import artifacts, cli, leftovers
from tests.evaluation_case import draw, make_artifacts, read, small_params

KB = 1e-6  # GB


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def write(file, age, size=1000):
    """A file that was last used so many seconds ago."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"0" * size)
    os.utime(file, (time.time() - age,) * 2)
    return file


def test_the_least_recently_used_files_go_first_until_the_limit_is_kept(root):
    cache = root / ".glance" / "cache" / "evaluation"
    old, middle, new = (write(cache / name, age) for name, age in (("a/z", 30), ("b/y", 20), ("b/x", 10)))
    other = write(root / ".glance" / "bundles" / "x", 100)
    assert leftovers.trim(3 * KB, ()) == (root / ".glance" / "cache", 0, 0)
    assert leftovers.trim(2.5 * KB, ()) == (root / ".glance" / "cache", 1, 1000)
    assert not old.exists() and middle.exists() and new.exists()
    assert leftovers.trim(1.5 * KB, {middle})[1:] == (1, 1000), "not the one that is used"
    assert leftovers.trim(0, {middle})[1:] == (0, 0) and middle.exists() and other.exists()


def test_a_file_that_is_being_written_is_left_alone(root):
    partial = write(root / ".glance" / "cache" / "evaluation" / ".a.partial", 30)
    assert leftovers.trim(0, ())[1:] == (0, 0) and partial.exists()


def test_without_a_cache_there_is_nothing_to_remove(root):
    assert leftovers.trim(0, ()) == leftovers.clean("cache") == (root / ".glance" / "cache", 0, 0)
    assert not (root / ".glance").exists()


def test_an_evaluation_keeps_its_own_images_and_drops_those_of_earlier_ones(root):
    settings = small_params()
    make_artifacts(settings)
    given = read(replace(settings, runtime=replace(settings.runtime, cache_limit_gb=0.0)))
    earlier = write(root / ".glance" / "cache" / "evaluation" / "earlier" / "x.zip", 1000)
    draw(given, artifacts.IMAGES)
    own = list((root / ".glance" / "cache" / "evaluation").rglob("*.zip"))
    assert own and not earlier.exists()

    earliest = min(file.stat().st_mtime for file in own) - 1
    for file in own:
        os.utime(file, (0, 0))
    draw(given, artifacts.IMAGES)
    assert all(file.stat().st_mtime > earliest for file in own), "to read it is to use it"


def fill(root):
    for folder in (*leftovers.FOLDERS, "mlartifacts"):
        write(root / ".glance" / folder / "deep" / "x", 10, size=2_000_000)


@pytest.mark.parametrize(("options", "emptied"), [((), ("cache",)), (("--all",), leftovers.FOLDERS)])
def test_clean_says_what_it_freed(root, options, emptied):
    fill(root)
    done = CliRunner().invoke(cli.main, ["clean", *options])
    assert done.exit_code == 0
    assert done.output == "".join(f"{root}/.glance/{name}: 1 files, 0.002 GB freed\n" for name in emptied)
    left = {file.relative_to(root / ".glance").parts[0] for file in (root / ".glance").rglob("x")}
    assert left == {*leftovers.FOLDERS, "mlartifacts"} - set(emptied)


def test_clean_empties_a_folder_that_is_a_link_and_follows_no_other(root):
    write(root / "disk" / "deep" / "x", 10)
    write(root / "mine" / "x", 10)
    (root / "disk" / "deep" / "link").symlink_to(root / "mine")
    (root / "disk" / "other").symlink_to(root / "mine")
    (root / ".glance").mkdir()
    (root / ".glance" / "cache").symlink_to(root / "disk")
    freed = leftovers.clean("cache")
    assert freed.files == 3 and list((root / "disk").iterdir()) == [] and (root / "mine" / "x").exists()
