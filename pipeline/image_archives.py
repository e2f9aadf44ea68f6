"""Images packed into a zip archive of PNG files, which any program for archives opens."""

import io
import zlib
from collections.abc import Sequence
from lzma import LZMAError
from pathlib import Path
from zipfile import BadZipFile, ZipFile, ZipInfo

import numpy as np
from PIL import Image

from pipeline import artifacts

DAMAGED = (BadZipFile, EOFError, LZMAError, OSError, RuntimeError, ValueError, zlib.error)
"""Errors of reading a damaged archive; a flipped bit can look like an unknown compression or a cipher."""


def pack(path: Path, images: np.ndarray, names: Sequence[object]) -> None:
    """Writes images as <name>.png into one zip archive, whole or not at all; equal images give equal bytes.

    Args:
        path: The archive.
        images: uint8 (B, H, W, 3).
        names: Name of each image.
    """
    buffer = io.BytesIO()
    with ZipFile(buffer, "w") as archive:  # stored as they are: a PNG is compressed already
        for image, name in zip(images, names, strict=True):
            png = io.BytesIO()
            Image.fromarray(image).save(png, format="PNG")
            archive.writestr(ZipInfo(f"{name}.png"), png.getvalue())  # a new ZipInfo has a fixed date
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
    """Whether the archive exists, holds images of exactly these names, and matches its checksums."""
    try:
        with ZipFile(path) as archive:
            return archive.namelist() == [f"{name}.png" for name in names] and archive.testzip() is None
    except DAMAGED:  # or missing
        return False
