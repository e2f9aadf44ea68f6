"""Reads a picture back (shapes, colours, places, counts, background) and compares it with its caption."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image
from scipy import ndimage

from pipeline.scenes.captions import BACKGROUNDS, COLORS, SHAPES, Caption, parse
from pipeline.scenes.renderer import GROUND, PALETTE, coverage

CHROMA = 40  # grey levels between the largest and the smallest channel: objects have more, backgrounds less
SPECK = 20  # pixels; smaller coloured spots are no objects
MIN_OVERLAP = 0.70  # soft intersection over union with the best shape's template; rendered shapes have over 0.8
MIN_LEAD = 0.03  # by which the best shape's overlap exceeds the next shape's; rendered shapes have over 0.09
MIN_PURITY = 0.75  # share of an object's inner pixels that have its colour
GROUND_TOLERANCE = 40  # grey levels
_TEMPLATE = 32  # pixels, side of the normalised masks


@dataclass(frozen=True)
class Found:
    """One object read from an image: centre in pixels, `overlap` with its shape's template in [0, 1]."""

    shape: str
    color: str
    x: float
    y: float
    overlap: float


@dataclass(frozen=True)
class Reading:
    """What an image shows; `clear` is False when something in it is no known shape or colour."""

    found: tuple[Found, ...]
    background: str | None
    clear: bool


_COLORS = np.array([PALETTE[c] for c in COLORS], dtype=np.float32)
_GROUNDS = np.array([sum(GROUND[b]) / 2 for b in BACKGROUNDS], dtype=np.float32)


@cache
def _templates() -> np.ndarray:
    radius = _TEMPLATE  # drawn large, then cropped and normalised like what is read
    masks = [coverage(shape, 48, 48, radius, size=96) for shape in SHAPES]
    return np.stack([_normalise(mask) for mask in masks])


def _normalise(mask: np.ndarray) -> np.ndarray:
    """Scales a soft mask by its larger extent to a centred square of side _TEMPLATE."""
    x_low, x_high = _extent(mask.max(axis=0))
    y_low, y_high = _extent(mask.max(axis=1))
    half = max(x_high - x_low, y_high - y_low) / 2
    x, y = (x_low + x_high) / 2, (y_low + y_high) / 2
    image = Image.fromarray(mask.astype(np.float32))
    box = (x - half, y - half, x + half, y + half)
    size = (_TEMPLATE, _TEMPLATE)
    return np.asarray(image.transform(size, Image.Transform.EXTENT, box, Image.Resampling.BILINEAR))


def _extent(profile: np.ndarray) -> tuple[float, float]:
    """First and last edge of a soft profile, in pixels: the outer pixels count by their coverage."""
    inside = np.flatnonzero(profile > 0.1)
    first, last = inside[0], inside[-1]
    return first + 1 - min(1.0, profile[first]), last + min(1.0, profile[last])


def read(image: np.ndarray) -> Reading:
    """Reads a picture, uint8 (H, W, 3)."""
    pixels = image.astype(np.float32)
    chroma = pixels.max(axis=2) - pixels.min(axis=2)
    labels, count = ndimage.label(chroma > CHROMA, structure=np.ones((3, 3)))
    ground = np.median(pixels[chroma < CHROMA / 2].reshape(-1, 3), axis=0) if (chroma < CHROMA / 2).any() else None
    background = None
    if ground is not None:
        distance = np.abs(_GROUNDS - ground.mean())
        background = BACKGROUNDS[int(distance.argmin())] if distance.min() < GROUND_TOLERANCE else None
    found, clear = [], background is not None
    for label, window in enumerate(ndimage.find_objects(labels), start=1):
        mask = labels[window] == label
        if mask.sum() < SPECK:
            continue
        thing = _identify(pixels, chroma, labels == label, ground)
        clear &= thing is not None
        found += [thing] if thing else []
    return Reading(tuple(found), background, bool(clear))


def _identify(pixels: np.ndarray, chroma: np.ndarray, mask: np.ndarray, ground: np.ndarray | None) -> Found | None:
    inner = ndimage.binary_erosion(mask)
    inner = inner if inner.sum() >= SPECK // 2 else mask
    nearest = np.linalg.norm(pixels[inner][:, None] - _COLORS, axis=2).argmin(axis=1)
    color = int(np.bincount(nearest, minlength=len(COLORS)).argmax())
    if (nearest == color).mean() < MIN_PURITY or ground is None:
        return None
    # Coverage of each pixel: how far its colour lies on the way from the background to the object's colour.
    axis = np.median(pixels[inner], axis=0) - ground
    cover = ((pixels - ground) @ axis / (axis @ axis)).clip(0, 1) * ndimage.binary_dilation(mask)
    soft = _normalise(cover)
    templates = _templates()
    overlap = np.minimum(templates, soft).sum(axis=(1, 2)) / np.maximum(templates, soft).sum(axis=(1, 2))
    shape = int(overlap.argmax())
    if overlap[shape] < MIN_OVERLAP or overlap[shape] - np.partition(overlap, -2)[-2] < MIN_LEAD:
        return None
    y, x = ndimage.center_of_mass(mask)
    return Found(SHAPES[shape], COLORS[color], float(x), float(y), float(overlap[shape]))


def check(image: np.ndarray, caption: str) -> bool:
    """Whether a picture, uint8 (H, W, 3), shows what its caption says, all of it and nothing else.

    Raises:
        ValueError: The caption is outside the grammar.
    """
    return _agrees(read(image), parse(caption))


def passes(images: np.ndarray, captions: list[str]) -> np.ndarray:
    """`check` for each image of (B, H, W, 3), bool (B,)."""
    return np.array([check(image, caption) for image, caption in zip(images, captions, strict=True)], dtype=bool)


def _agrees(reading: Reading, caption: Caption) -> bool:
    wanted = [subject for subject in caption.subjects for _ in range(subject.count)]
    if not reading.clear or len(reading.found) != len(wanted):
        return False
    if caption.background not in (None, reading.background):
        return False
    if sorted(f.shape for f in reading.found) != sorted(s.shape for s in wanted):
        return False
    if caption.task == "counting":
        return all(caption.subjects[0].color in (None, thing.color) for thing in reading.found)
    # The subjects of one caption differ in shape, so the shape says which object is which.
    by_shape = {thing.shape: thing for thing in reading.found}
    things = [by_shape[subject.shape] for subject in wanted]
    if any(s.color not in (None, t.color) for s, t in zip(wanted, things, strict=True)):
        return False
    return caption.relation is None or _related(things[0], things[1], caption.relation)


def _related(first: Found, second: Found, relation: str) -> bool:
    right, down = second.x - first.x, second.y - first.y
    return {
        "left of": right > abs(down),
        "right of": -right > abs(down),
        "above": down > abs(right),
        "below": -down > abs(right),
    }[relation]
