"""The folder of a repository: the files of a bundle, pictures that it made, and the card."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline import image_files
from pipeline.artifacts import files, read_text
from pipeline.backbones.base import Backbone
from pipeline.bundle import generating, header
from pipeline.bundle.manifest import CARD, Bundle
from pipeline.hub import card
from pipeline.hub.card import Release
from pipeline.hub.front_matter import Picture

IMAGES = "images"

Draw = Callable[[Path], Sequence[Picture]]
"""folder -> the pictures that were written below it."""


def write(folder: Path, bundle: Bundle, release: Release, draw: Draw) -> list[Path]:
    """Fills an empty folder; the files of the bundle are copied as they are, but for the card and a measured retention.

    Returns:
        The files, as paths below the folder.

    Raises:
        ValueError: As `card.text` does.
    """
    for name in files(bundle.folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.folder / name, folder / name)
    if release.retention:
        header.renew(folder, replace(bundle, retention=release.retention))
    pictures = draw(folder)
    made = card.text(read_text(bundle.folder / CARD), bundle, release, pictures)
    (folder / CARD).write_text(made, encoding="utf-8")
    Bundle.load(folder)
    return [Path(name) for name in files(folder)]


def drawn(folder: Path, bundle: Bundle, backbone: Backbone, prompts: Sequence[str], seed: int) -> list[Picture]:
    """Writes the bundle's image of each prompt, image i from the noise of seed + i; its PNG text says how it was made.

    Args:
        folder: The folder of the repository.
        bundle: The bundle.
        backbone: The bundle's base, all parts.
        prompts: One per picture.
        seed: Of the first picture.
    """
    names, origin = image_files.names(list(prompts)), generating.Origin.of(bundle)
    for number, image in generating.images(backbone, bundle, list(prompts), seed, batch=1):
        image_files.save(image, folder / IMAGES / names[number], origin.texts(prompts[number], seed + number))
    return [Picture(f"{IMAGES}/{name}", prompt) for name, prompt in zip(names, prompts, strict=True)]
