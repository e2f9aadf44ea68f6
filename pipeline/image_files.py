"""Images as PNG files: each its own, all in one grid, or packed into a zip archive."""

import io
import re
import zlib
from collections.abc import Sequence
from lzma import LZMAError
from pathlib import Path
from zipfile import BadZipFile, ZipFile, ZipInfo

import numpy as np
from PIL import Image

from pipeline import artifacts

DAMAGED = (BadZipFile, EOFError, LZMAError, OSError, RuntimeError, ValueError, zlib.error)
"""What reading a damaged archive raises: a flipped bit may also stand for a compression or a cipher."""


def write(images: Sequence[np.ndarray], prompts: Sequence[str], out: Path, grid: bool) -> list[Path]:
    """Writes images as PNG files and returns their paths.

    Args:
        images: uint8 (H, W, 3) each.
        prompts: Of each image; its file is named after it.
        out: A folder, or a .png file for one image or a grid of several.
        grid: Whether the folder gets a grid too.
    """
    if out.suffix == ".png":
        _save(images[0] if len(images) == 1 else tile(images), out)
        return [out]
    paths = []
    for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        name = re.sub(r"[^a-z0-9]+", "-", f"{i:03d} {prompt.lower()}"[:64]).strip("-")
        paths.append(out / f"{name}.png")
        _save(image, paths[-1])
    if grid:
        paths.append(out / "grid.png")
        _save(tile(images), paths[-1])
    return paths


def tile(images: Sequence[np.ndarray]) -> np.ndarray:
    """Lays images (H, W, 3) out in a nearly square grid, row by row, on black."""
    columns = int(np.ceil(np.sqrt(len(images))))
    rows = -(-len(images) // columns)
    stack = np.stack([*images, *[np.zeros_like(images[0])] * (rows * columns - len(images))])
    height, width = stack.shape[1:3]
    return stack.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)


def pack(path: Path, images: np.ndarray, names: Sequence[object]) -> None:
    """Writes images as <name>.png into one zip archive, whole or not at all; equal images give equal bytes.

    Args:
        path: The archive.
        images: uint8 (B, H, W, 3).
        names: Of each image.
    """
    buffer = io.BytesIO()
    with ZipFile(buffer, "w") as archive:  # stored as they are: a PNG is compressed already
        for image, name in zip(images, names, strict=True):
            png = io.BytesIO()
            Image.fromarray(image).save(png, format="PNG")
            archive.writestr(ZipInfo(f"{name}.png"), png.getvalue())  # a ZipInfo of its own has no time of day
    with artifacts.atomic_file(path) as partial:
        partial.write_bytes(buffer.getbuffer())


def unpack(path: Path) -> np.ndarray:
    """The images of an archive that `pack` wrote, uint8 (B, H, W, 3).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged.
    """
    try:
        with ZipFile(path) as archive:
            return np.stack([np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in archive.namelist()])
    except FileNotFoundError:
        raise
    except DAMAGED as error:
        raise ValueError(f"{path} is no archive of images ({error})") from error


def intact(path: Path, names: Sequence[object]) -> bool:
    """Whether an archive is there with images of these names, and they match their checksums."""
    try:
        with ZipFile(path) as archive:
            return archive.namelist() == [f"{name}.png" for name in names] and archive.testzip() is None
    except DAMAGED:  # or missing
        return False


def _save(image: np.ndarray, path: Path) -> None:
    with artifacts.atomic_file(path) as partial:
        Image.fromarray(image).save(partial, format="PNG")
