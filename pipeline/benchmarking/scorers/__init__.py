"""What an in-process scorer is: its weights, and what it says of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from pipeline.evaluation.benchmarks.official import Item

if TYPE_CHECKING:
    import torch


class Lacking(ValueError):
    """A scorer has no weights or no packages yet; the sentence says what to do."""


@dataclass(frozen=True, kw_only=True)
class Weight:
    """Weights that a scorer loads.

    Attributes:
        name: As `weights` in benchmarks/params.yaml names them; scorers that share weights share the name.
        hub: Where they come from: "owner/name@revision", or the address of one file.
        file: The file in the repository; "" is the whole folder.
        sha256: Hex digest of the file; None where it is a folder, or where nobody could read the file yet.
        licence: In one line.
    """

    name: str
    hub: str
    file: str = ""
    sha256: str | None = None
    licence: str


class Scorer(Protocol):
    """A loaded scorer."""

    def fields(self, images: Sequence[Image.Image], items: Sequence[Item]) -> list[dict[str, float | str]]:
        """What it says of each image, given the prompt of each; RGB images of any sizes."""


class Extractor(Protocol):
    """A loaded scorer that gives features for a distance between distributions."""

    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """float32 (B, D)."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A scorer before it is loaded.

    Attributes:
        name: As `Metric.scorer` and `Distance.scorer` name it.
        version: Of our code for it: another version's values are not compared with this one's.
        about: What it measures, in one sentence.
        weights: What it loads.
        packages: The packages whose versions its values depend on.
        load: Loads it: the place of each weight by its name, and the device. Raises ValueError where a file is not
            what it must be.
        extracts: Whether it is an Extractor.
        batch: Images at once.
    """

    name: str
    version: int
    about: str
    weights: tuple[Weight, ...]
    packages: tuple[str, ...]
    load: Callable[[Mapping[str, Path], torch.device], Scorer | Extractor]
    extracts: bool = False
    batch: int = 16
