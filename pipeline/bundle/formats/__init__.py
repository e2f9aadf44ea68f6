"""The choices of `glance export --format`: a new format is a file of this package and an entry of the table."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pipeline import names
from pipeline.artifacts import atomic_dir
from pipeline.bundle.formats.base import Format
from pipeline.bundle.formats.comfyui.export import COMFYUI
from pipeline.bundle.formats.fused import FUSED
from pipeline.bundle.formats.fused_file import FUSED_FILE
from pipeline.bundle.formats.kohya import KOHYA
from pipeline.bundle.formats.one_file import ONE_FILE
from pipeline.bundle.manifest import Bundle

FORMATS: dict[str, Format] = {one.name: one for one in (FUSED, COMFYUI, FUSED_FILE, KOHYA, ONE_FILE)}


def export(
    name: str,
    folder: Path,
    out: Path,
    *,
    base: Path | None = None,
    height: int | None = None,
    width: int | None = None,
    picture: bool = True,
) -> list[Path]:
    """Writes a bundle in another format, whole or not at all.

    Args:
        name: A key of FORMATS.
        folder: The bundle, which is only read.
        out: The folder to make.
        base: The base model's folder; None = the folder that the bundle names.
        height: Of the images, in pixels; None = the bundle's. For formats with a `size_step`.
        width: As `height`.
        picture: Draw the format's sample picture, if it has one and the base is there.

    Returns:
        The files that were written.

    Raises:
        ValueError: The format is unknown or refuses the bundle; `out` exists, or lies in the bundle or the base; the
            folder holds no bundle; the base is another model, or it is missing and needed; the format takes no size or
            no such size, or it has no picture to leave out.
    """
    names.check("--format", name, FORMATS)
    chosen = FORMATS[name]
    sizes = {key: pixels for key, pixels in (("height", height), ("width", width)) if pixels is not None}
    _check_sizes(chosen, sizes)
    if not picture and chosen.illustrate is None:
        raise ValueError(f"--no-picture is for formats with a sample picture, got {chosen.name}")
    if out.exists():
        raise ValueError(f"OUT must not be there yet, got {out}")
    bundle = Bundle.load(folder)
    bundle = replace(bundle, height=height or bundle.height, width=width or bundle.width)
    if base is not None:
        bundle = replace(bundle, base_folder=base)
    place = bundle.base().path
    for inside in (bundle.folder, place):
        if out.resolve().is_relative_to(inside.resolve()):
            raise ValueError(f"OUT must lie outside of {inside}, whose digest covers every file in it, got {out}")
    there = place.exists()
    if there or chosen.needs_base or base is not None:
        bundle.check_base()
    elif sizes:
        raise ValueError(
            f"--{min(sizes)} needs the scheduler of the base model {place}, which is not here: use --teacher"
        )
    with atomic_dir(out) as partial:
        written = chosen.write(bundle, partial)
        if chosen.illustrate and there and picture:
            written += chosen.illustrate(bundle, partial)
    return [out / file for file in written]


def _check_sizes(chosen: Format, sizes: Mapping[str, int]) -> None:
    """Raises ValueError if the format takes no size, or not these ones."""
    for key, pixels in sizes.items():
        step = chosen.size_step
        if step is None:
            raise ValueError(f"--{key} is for formats that depend on the size of the images, got {chosen.name}")
        if pixels < 1 or pixels % step:
            near = max(1, round(pixels / step)) * step
            raise ValueError(
                f"--{key} must be a positive multiple of {step} pixels, got {pixels}; the nearest is {near}"
            )
