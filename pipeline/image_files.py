"""Image files: one PNG per image or all images in one grid, and pictures of other formats at a given size."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from pipeline import artifacts

GRID = "grid.png"
GRID_PIXELS = 2**27  # 400 MB in memory, and three quarters of what Pillow opens


def names(prompts: Sequence[str]) -> list[str]:
    """File names for the prompts' images: a number that sorts them, then the prompt's Latin letters and digits."""
    digits = max(3, len(str(len(prompts) - 1)))
    stems = (re.sub(r"[^a-z0-9]+", "-", f"{i:0{digits}d} {prompt.lower()}"[:64]) for i, prompt in enumerate(prompts))
    return [f"{stem.strip('-')}.png" for stem in stems]


def save(image: np.ndarray, path: Path, texts: Mapping[str, str] | None = None) -> None:
    """Writes an image, whole or not at all.

    Args:
        image: uint8 (H, W, 3).
        path: The file.
        texts: Text chunks of the PNG, by keyword.
    """
    chunks = PngInfo()
    for keyword, text in (texts or {}).items():
        chunks.add_text(keyword, text)
    with artifacts.atomic_file(path) as partial:
        Image.fromarray(image).save(partial, format="PNG", pnginfo=chunks)


def read(path: Path) -> np.ndarray:
    """An image that `save` wrote, uint8 (H, W, 3)."""
    with Image.open(path) as image:
        return np.asarray(image)


def picture(path: Path, key: str) -> Image.Image:
    """A picture of any format that Pillow reads, turned as its EXIF says.

    Raises:
        ValueError: The file is no such picture, and `key` is what asked for it.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{key} must be a picture that Pillow reads, got {path}: {reason}") from error


def covering(image: Image.Image, height: int, width: int, mode: str) -> np.ndarray:
    """A picture resized with Lanczos until it covers a size, and its middle cut out; keeps its proportions.

    Args:
        image: The picture.
        height: Pixels of the result.
        width: Pixels of the result.
        mode: Pillow's mode of the pixels: "RGB" or "L".

    Returns:
        uint8 (height, width, 3), or (height, width) for "L".
    """
    return np.asarray(ImageOps.fit(image.convert(mode), (width, height), Image.Resampling.LANCZOS))


def texts(path: Path) -> dict[str, str]:
    """The text chunks of a PNG file; {} where the file is missing, broken or cut off."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            found = {str(keyword): text for keyword, text in image.info.items() if isinstance(text, str)}
            image.verify()  # reads to the end and compares the checksums
            return found
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return {}


class Grid:
    """Images in a nearly square grid, row by row on black; the grid of one image is that image.

    Args:
        count: How many images.
        height: Height of each image, in pixels.
        width: Width of each image, in pixels.

    Raises:
        ValueError: The images are too many for one picture.
    """

    def __init__(self, count: int, height: int, width: int) -> None:
        self.columns = int(np.ceil(np.sqrt(count)))
        rows = -(-count // self.columns)
        pixels = rows * height * self.columns * width
        if pixels > GRID_PIXELS:
            raise ValueError(
                f"a grid must have at most {GRID_PIXELS} pixels, got {pixels} of {count} images of {height} x {width}: "
                "use a folder without a grid"
            )
        self._tiles = np.zeros((rows, height, self.columns, width, 3), dtype=np.uint8)

    def place(self, number: int, image: np.ndarray) -> None:
        """Puts image `number`, uint8 (height, width, 3), in its place."""
        row, column = divmod(number, self.columns)
        self._tiles[row, :, column] = image

    @property
    def image(self) -> np.ndarray:
        """uint8 (rows * height, columns * width, 3)."""
        rows, height, columns, width, channels = self._tiles.shape
        return self._tiles.reshape(rows * height, columns * width, channels)
