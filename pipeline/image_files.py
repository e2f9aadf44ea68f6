"""Images as PNG files, each its own or all in one grid."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline import artifacts


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


def _save(image: np.ndarray, path: Path) -> None:
    with artifacts.atomic_file(path) as partial:
        Image.fromarray(image).save(partial, format="PNG")
