"""Pieces of the official layouts: the same single images as links, as grids and in other formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline import artifacts
from pipeline.evaluation.benchmarks.official import ImageOf


def only(images: Mapping[str, ImageOf]) -> ImageOf:
    """The images of the only arm, for a layout of one arm."""
    (images_of_arm,) = images.values()
    return images_of_arm


def link(image: Path, target: Path) -> None:
    """Makes `target` the same file as `image`, by a hard link where the file system has them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    artifacts.link_or_copy(image, target)


def grid(images: Sequence[Path], target: Path, columns: int = 2, **saving: Any) -> None:
    """Puts images of one size into one file, row by row from the top left: TL, TR, BL, BR for four.

    Args:
        images: PNG files that fill a whole number of rows.
        target: The file; its suffix decides the format.
        columns: Images side by side.
        saving: What Pillow's `save` takes, such as quality.

    Raises:
        ValueError: The images do not fill whole rows, or differ in size.
    """
    opened = [np.asarray(Image.open(path).convert("RGB")) for path in images]
    shapes = {image.shape for image in opened}
    if len(opened) % columns or len(shapes) != 1:
        raise ValueError(
            f"the grid {target.name} must have whole rows of {columns} images of one size,"
            f" got {len(opened)} of {sorted(shapes)}"
        )
    rows = [np.concatenate(opened[i : i + columns], axis=1) for i in range(0, len(opened), columns)]
    _save(Image.fromarray(np.concatenate(rows)), target, **saving)


def convert(image: Path, target: Path, **saving: Any) -> None:
    """Writes an image in the format of the target's suffix; `saving` is what Pillow's `save` takes."""
    _save(Image.open(image).convert("RGB"), target, **saving)


def _save(image: Image.Image, target: Path, **saving: Any) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    image.save(target, **saving)
