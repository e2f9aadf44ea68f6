"""`inception` and `inception_patch`: the features of FID and KID, of whole images and of their middle.

The network is torch-fidelity's conversion of the Inception that FID was defined with. Images are prepared as in pi-Flow
(Lakonik/piFlow, 4229541): a whole image is resized to 299 x 299, bicubic with antialiasing; a patch is the middle
299 x 299 pixels, unscaled. So the network's own resizing does nothing. pi-Flow uses StyleGAN's conversion of the
network, and DMD2 resizes by another rule: FIDs of the three differ in the last digits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.benchmarking.scorers import Entry, Weight, pixels
from pipeline.benchmarking.scorers.exact import exact
from pipeline.benchmarking.scorers.loading import file, package

SIDE = 299
LAYER = "2048"  # the pooled features, named by their number
WEIGHT = Weight(
    name="inception",
    hub="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",  # pt_inception-... is the same file
    licence="Apache-2.0, as TensorFlow's models",
)


@dataclass(frozen=True, kw_only=True)
class Inception:
    """A loaded extractor.

    Attributes:
        model: The network in float32.
        prepare: An image to uint8 (3, 299, 299).
        device: Where the model lies.
    """

    model: Any
    prepare: Callable[[Image.Image], torch.Tensor]
    device: torch.device

    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """float32 (B, 2048)."""
        batch = torch.stack([self.prepare(image) for image in images]).to(self.device)
        with exact():
            (features,) = self.model(batch)
        return features.cpu().numpy()


def whole(image: Image.Image) -> torch.Tensor:
    """A whole image at 299 x 299, uint8 (3, 299, 299)."""
    x = pixels.resize(pixels.read(image) * 2 - 1, SIDE, SIDE)
    return (x * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def patch(image: Image.Image) -> torch.Tensor:
    """The middle 299 x 299 pixels of an image, uint8 (3, 299, 299).

    Raises:
        ValueError: The image is smaller.
    """
    if min(image.size) < SIDE:
        width, height = image.size
        raise ValueError(
            f"inception_patch needs images of at least {SIDE} x {SIDE} pixels, got width {width} and height {height}"
        )
    x = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return pixels.centre(x, SIDE)


def load(prepare: Callable[[Image.Image], torch.Tensor], places: Mapping[str, Path], device: torch.device) -> Inception:
    """Loads the extractor. Raises ValueError if the file is a wrong one.

    torch-fidelity unpickles the file, which can run code from it. So the file's digest is checked first.
    """
    path = file(WEIGHT, places)
    network = package("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    model = network("inception-v3-compat", [LAYER], feature_extractor_weights_path=str(path))
    return Inception(model=model.to(device), prepare=prepare, device=device)


INCEPTION = Entry(
    name="inception",
    version=1,
    about="Features of whole images by the Inception network of FID.",
    weights=(WEIGHT,),
    packages=("torch", "torch-fidelity"),
    load=partial(load, whole),
    extracts=True,
)
INCEPTION_PATCH = Entry(
    name="inception_patch",
    version=1,
    about="Features of the middle 299 x 299 pixels of images by the Inception network of FID: fine detail, unscaled.",
    weights=(WEIGHT,),
    packages=("torch", "torch-fidelity"),
    load=partial(load, patch),
    extracts=True,
)
