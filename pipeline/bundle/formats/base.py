"""The type of every format."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.bundle.manifest import Bundle


@dataclass(frozen=True, kw_only=True)
class Format:
    """A way to write a bundle for other tools: a folder beside the bundle, which the bundle's digest does not cover."""

    name: str
    """The name for `glance export --format`."""
    description: str
    """What the folder holds, in one line."""
    write: Callable[[Bundle, Path], list[Path]]
    """write(bundle, folder) -> files: fills an empty folder, and returns the files as paths below it.

    The folder that `bundle.base()` names holds the bundle's own base, or does not exist if the format works without it.
    The bundle has the height and width that were asked for. Raises ValueError if the format cannot hold the bundle.
    """
    illustrate: Callable[[Bundle, Path], list[Path]] | None = None
    """As `write`, after it: adds a picture that the bundle draws. Called only if the base is there."""
    needs_base: bool = True
    """Whether `write` reads the base's folder."""
    size_step: int | None = None
    """Height and width must be multiples of this many pixels; None = what is written does not depend on the size."""
