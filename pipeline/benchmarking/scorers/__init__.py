"""The types of an in-process scorer: its weights, and its results for images."""

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
        name: Key in `weights` of benchmarks/params.yaml; scorers that share weights share the name.
        hub: Origin of the weights: "owner/name@revision", or the address of one file.
        file: The file in the repository; "" = the whole folder.
        sha256: Hex digest of the file; None for a folder, or if nobody could read the file yet.
        licence: The licence, in one line.
    """

    name: str
    hub: str
    file: str = ""
    sha256: str | None = None
    licence: str


class Scorer(Protocol):
    """A loaded scorer."""

    def fields(self, images: Sequence[Image.Image], items: Sequence[Item]) -> list[dict[str, float | str]]:
        """The fields of each image, given the prompt of each; RGB images of any sizes."""


class Extractor(Protocol):
    """A loaded scorer that gives features for a distance between distributions."""

    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """float32 (B, D)."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A scorer before it is loaded.

    Attributes:
        name: Name of the scorer, as in `Metric.scorer` and `Distance.scorer`.
        version: Version of our code for the scorer; values of different versions are not compared.
        about: What the scorer measures, in one sentence.
        weights: The weights that the scorer loads.
        packages: The packages whose versions its values depend on.
        load: Loads the scorer, given the path of each weight by name, and the device. Raises ValueError for a wrong
            file.
        extracts: Whether the loaded scorer is an Extractor.
        batch: How many images are scored at once.
    """

    name: str
    version: int
    about: str
    weights: tuple[Weight, ...]
    packages: tuple[str, ...]
    load: Callable[[Mapping[str, Path], torch.device], Scorer | Extractor]
    extracts: bool = False
    batch: int = 16
