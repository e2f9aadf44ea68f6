"""Limits and removes the files under `$DVC_ROOT/.glance` that can be made or downloaded again."""

import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pipeline.artifacts import dvc_root

GB = 10**9
FOLDERS = ("cache", "checkpoints", "bundles", "downloads", "benchmarks")


class Freed(NamedTuple):
    """What was removed from a folder."""

    folder: Path
    files: int
    bytes: int


def folder(name: str) -> Path:
    """Where one of FOLDERS lies."""
    return dvc_root() / ".glance" / name


def trim(limit_gb: float, used: Collection[Path]) -> Freed:
    """Removes the least recently used files of the cache until it holds at most limit_gb.

    A file's modification time says when the file was used last, since every reader updates it. Files that are still
    being written stay; their names start with a dot.

    Args:
        limit_gb: In 10^9 bytes.
        used: Files of the calling run, which stay whatever the limit is.
    """
    cache, found = folder("cache"), []
    for file in cache.rglob("[!.]*"):
        with suppress(FileNotFoundError):  # another evaluation may trim too
            if file.is_file():
                found.append((file.stat().st_mtime, file.stat().st_size, file))
    excess = sum(size for _, size, _ in found) - limit_gb * GB
    files = freed = 0
    for _, size, file in sorted(found):
        if freed >= excess:
            break
        if file not in used:
            file.unlink(missing_ok=True)
            files, freed = files + 1, freed + size
    return Freed(cache, files, freed)


def clean(name: str) -> Freed:
    """Empties one of FOLDERS."""
    place = folder(name)
    files = [path.lstat() for path in place.rglob("*") if not path.is_dir() or path.is_symlink()]
    for path in place.iterdir() if place.is_dir() else ():  # `place` itself may be a link to a larger disk
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return Freed(place, len(files), sum(stat.st_size for stat in files))
