"""What is drawn, and what a drawing shows of itself."""

from dataclasses import dataclass, field

import numpy as np

from pipeline.bundle.manifest import Guidance


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What teacher and student share: the size of the images, the text's length and the guidance."""

    height: int
    width: int
    max_sequence_length: int
    teacher_steps: int
    guidance: Guidance


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The picture in the making, at one noise level."""

    sigma: float
    estimate: np.ndarray
    """The decoded x_0 = x - sigma v: what the model takes the picture to be; uint8 (H, W, 3)."""
    state: np.ndarray
    """The decoded x itself, with its noise; uint8 (H, W, 3)."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A picture, or the state of its drawing."""

    forwards: int
    total: int
    """Forwards of the whole picture."""
    seconds: float = 0.0
    """Time of the text encoding, the forwards and the last decoding."""
    image: np.ndarray | None = None
    """The last preview, then the picture; uint8 (H, W, 3)."""
    frames: tuple[Frame, ...] = field(default=(), repr=False)
    """A frame for each level that was asked for and one at sigma 0, once the picture is done."""

    @property
    def done(self) -> bool:
        """Whether this is the whole picture."""
        return bool(self.frames)
