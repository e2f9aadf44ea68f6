"""Pictures side by side: the grid as a PNG, single images as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

THUMBNAIL = 256  # pixels a side; larger images are reduced to this size in the report and the grid
SMALL = 128  # pixels a side; images up to this size are stored without loss and enlarged by a whole factor
TILE = 128  # pixels a side of an image in the grid
GAP = 10  # pixels between images in the grid
TEXT = 26  # pixels of a caption line
HEAD = 40  # pixels of the titles
INK, PAPER, GOOD, BAD = (28, 27, 26), (251, 250, 248), (15, 123, 82), (190, 40, 40)


@dataclass(frozen=True)
class Row:
    """One prompt across arms: an image and a verdict per arm. `verdicts` is None if no checker reads the images."""

    caption: str
    images: list[np.ndarray]
    passed: list[bool] | None


def thumbnail(image: np.ndarray, side: int = THUMBNAIL) -> Image.Image:
    """An image uint8 (H, W, 3), reduced if it is larger than `side`."""
    picture = Image.fromarray(image)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def data_uri(image: np.ndarray) -> str:
    """An image uint8 (H, W, 3) as a data URI: PNG where it is small, JPEG of a thumbnail where it is large."""
    small = max(image.shape[:2]) <= SMALL
    buffer = io.BytesIO()
    if small:
        Image.fromarray(image).save(buffer, "PNG", optimize=True)
    else:
        thumbnail(image).save(buffer, "JPEG", quality=88)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def grid(titles: Sequence[str], rows: Sequence[Row]) -> Image.Image:
    """Prompts down, arms across, a caption over every row and a pass mark under every image.

    Args:
        titles: One per arm, of one or two lines.
        rows: One per prompt, an image per arm.

    Raises:
        ValueError: If a row has another number of images than there are titles.
    """
    for row in rows:
        if len(row.images) != len(titles):
            raise ValueError(f"every row needs {len(titles)} images, got {len(row.images)} for {row.caption!r}")
    row_height = TEXT + TILE + GAP
    width = GAP + len(titles) * (TILE + GAP)
    canvas = Image.new("RGB", (width, HEAD + GAP + len(rows) * row_height), PAPER)
    draw = ImageDraw.Draw(canvas)
    bold, plain = ImageFont.load_default(13), ImageFont.load_default(12)
    for column, title in enumerate(titles):
        draw.multiline_text((GAP + column * (TILE + GAP), GAP), title, INK, bold, spacing=2)
    for i, row in enumerate(rows):
        top = HEAD + GAP + i * row_height
        draw.text((GAP, top + 5), _fit(row.caption, plain, width - 2 * GAP), INK, plain)
        for column, image in enumerate(row.images):
            left = GAP + column * (TILE + GAP)
            canvas.paste(_tile(image), (left, top + TEXT))
            if row.passed is not None:
                _mark(draw, left + TILE - 12, top + TEXT + TILE - 12, row.passed[column])
    return canvas


def _tile(image: np.ndarray) -> Image.Image:
    picture = Image.fromarray(image)
    small = max(picture.size) <= SMALL
    return picture.resize((TILE, TILE), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)


def _mark(draw: ImageDraw.ImageDraw, x: int, y: int, passed: bool) -> None:
    """A tick or a cross on a disc, told apart by shape and by colour."""
    draw.ellipse((x - 9, y - 9, x + 9, y + 9), GOOD if passed else BAD, PAPER)
    if passed:
        draw.line([(x - 4, y), (x - 1, y + 4), (x + 5, y - 4)], PAPER, 2)
    else:
        draw.line([(x - 4, y - 4), (x + 4, y + 4)], PAPER, 2)
        draw.line([(x - 4, y + 4), (x + 4, y - 4)], PAPER, 2)


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, cut with an ellipsis to fit `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
