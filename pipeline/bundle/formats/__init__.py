"""The choices of `glance export --format`: a new format is a file of this package and an entry of the table."""

from dataclasses import replace
from pathlib import Path

from pipeline import names
from pipeline.artifacts import atomic_dir
from pipeline.bundle.formats.base import Format
from pipeline.bundle.formats.fused import FUSED
from pipeline.bundle.formats.fused_file import FUSED_FILE
from pipeline.bundle.formats.kohya import KOHYA
from pipeline.bundle.formats.one_file import ONE_FILE
from pipeline.bundle.manifest import Bundle

FORMATS: dict[str, Format] = {one.name: one for one in (FUSED, FUSED_FILE, KOHYA, ONE_FILE)}


def export(name: str, folder: Path, out: Path, *, base: Path | None = None) -> list[Path]:
    """Writes a bundle in another format, whole or not at all.

    Args:
        name: A key of FORMATS.
        folder: The bundle, which is only read.
        out: The folder to make.
        base: The base model's folder; None = the folder that the bundle names.

    Returns:
        The files that were written.

    Raises:
        ValueError: The format is unknown or refuses the bundle; `out` exists, or lies in the bundle or the base; the
            folder holds no bundle; or the base is missing or another model.
    """
    names.check("--format", name, FORMATS)
    if out.exists():
        raise ValueError(f"OUT must not be there yet, got {out}")
    bundle = Bundle.load(folder)
    if base is not None:
        bundle = replace(bundle, base_folder=base)
    for inside in (bundle.folder, bundle.base().path):
        if out.resolve().is_relative_to(inside.resolve()):
            raise ValueError(f"OUT must lie outside of {inside}, whose digest covers every file in it, got {out}")
    bundle.check_base()
    with atomic_dir(out) as partial:
        written = FORMATS[name].write(bundle, partial)
    return [out / file for file in written]
