"""Draws scenes: up to four flat shapes in an ordered layout, each in a field two latent tokens wide."""

import math
import random
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from pipeline.scenes.captions import BACKGROUNDS, COLORS, Caption

SIZE = 64  # pixels; with an 8x autoencoder and 2x2 packing, 4 x 4 latent tokens
PLACES = {  # (x, y) centres by the number of objects, pixels; multiples of 16, so that fields are whole tokens
    1: ((32, 32),),
    2: ((16, 32), (48, 32)),
    3: ((32, 16), (16, 48), (48, 48)),
    4: ((16, 16), (48, 16), (16, 48), (48, 48)),
}
COLUMN = ((32, 16), (32, 48))  # the centres of two objects above each other
RADIUS = (9.5, 12.5)  # pixels, uniform
JITTER = 2.0  # pixels, uniform in each axis; radius + jitter stays inside the field
_SUPERSAMPLING = 4

PALETTE = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (245, 220, 60),
    "green": (50, 170, 70),
    "cyan": (60, 200, 215),
    "blue": (50, 80, 220),
    "purple": (140, 60, 190),
    "pink": (245, 130, 190),
}
GROUND = {"white": (250, 232), "grey": (140, 112), "black": (32, 12)}  # grey level at the top and at the bottom


@dataclass(frozen=True)
class Thing:
    """One drawn object; centre and radius in pixels."""

    shape: str
    color: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """Everything in one picture."""

    things: tuple[Thing, ...]
    background: str


def layout(caption: Caption, rng: random.Random) -> Scene:
    """Draws what the caption leaves open: jitter, sizes, unnamed colours and background."""
    colors = [s.color for s in caption.subjects for _ in range(s.count)]
    shapes = [s.shape for s in caption.subjects for _ in range(s.count)]
    things = tuple(
        Thing(
            shape,
            color or rng.choice(COLORS),
            x + rng.uniform(-JITTER, JITTER),
            y + rng.uniform(-JITTER, JITTER),
            rng.uniform(*RADIUS),
        )
        for shape, color, (x, y) in zip(shapes, colors, _places(caption, len(shapes)), strict=True)
    )
    return Scene(things, caption.background or rng.choice(BACKGROUNDS))


def _places(caption: Caption, count: int) -> tuple[tuple[int, int], ...]:
    """Centres in the order of the caption's objects, which is from left to right unless a relation says otherwise."""
    match caption.relation:
        case "right of":
            return PLACES[2][::-1]
        case "above":
            return COLUMN
        case "below":
            return COLUMN[::-1]
        case _:
            return PLACES[count]


@cache
def outline(shape: str) -> tuple[tuple[float, float], ...]:
    """The polygon of a shape in units of its radius, y downwards; a ring's hole is not in it."""
    turn = [2 * math.pi * i / 48 for i in range(48)]
    match shape:
        case "circle" | "ring":
            points = [(math.cos(t), math.sin(t)) for t in turn]
        case "square":
            points = [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]
        case "triangle":
            points = [(0, -0.95), (1.0, 0.85), (-1.0, 0.85)]
        case "star":
            points = [
                (r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5)) for i, r in enumerate([1.05, 0.45] * 5)
            ]
        case "cross":
            a, b = 0.34, 1.0
            points = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a),
                      (-a, -a)]  # fmt: skip
        case "heart":
            heights = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turn]
            points = [(math.sin(t) ** 3, -height / 16) for t, height in zip(turn, heights, strict=True)]
        case "diamond":
            points = [(0, -1.05), (0.72, 0), (0, 1.05), (-0.72, 0)]
        case _:
            raise ValueError(f"shape must be one the renderer draws, got {shape!r}")
    return tuple(points)


HOLE = 0.5  # inner radius of a ring, in units of its radius


def coverage(shape: str, x: float, y: float, radius: float, size: int = SIZE) -> np.ndarray:
    """How much of each pixel a shape covers, float32 (size, size) in [0, 1]."""
    k = _SUPERSAMPLING
    canvas = Image.new("L", (size * k, size * k))
    draw = ImageDraw.Draw(canvas)
    draw.polygon([((x + px * radius) * k, (y + py * radius) * k) for px, py in outline(shape)], fill=255)
    if shape == "ring":
        hole = HOLE * radius
        draw.ellipse([(x - hole) * k, (y - hole) * k, (x + hole) * k, (y + hole) * k], fill=0)
    return np.asarray(canvas.reduce(k), dtype=np.float32) / 255


def render(scene: Scene) -> np.ndarray:
    """Draws a scene, uint8 (64, 64, 3)."""
    top, bottom = GROUND[scene.background]
    image = np.repeat(np.linspace(top, bottom, SIZE, dtype=np.float32)[:, None, None], SIZE, axis=1).repeat(3, axis=2)
    for thing in scene.things:
        cover = coverage(thing.shape, thing.x, thing.y, thing.radius)[..., None]
        image = (1 - cover) * image + cover * np.array(PALETTE[thing.color], dtype=np.float32)
    return np.rint(image).astype(np.uint8)
