"""What every format is made of."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.bundle.manifest import Bundle


@dataclass(frozen=True, kw_only=True)
class Format:
    """A way to write a bundle for other tools: a folder beside the bundle, which the bundle's digest does not cover."""

    name: str
    """What `glance export --format` calls it."""
    description: str
    """What the folder holds, in one line."""
    write: Callable[[Bundle, Path], list[Path]]
    """write(bundle, folder) -> files: fills an empty folder, and returns the files as paths below it.

    The folder that `bundle.base()` names holds the bundle's own base. Raises ValueError where the bundle cannot be
    written like that.
    """
