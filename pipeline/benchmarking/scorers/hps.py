"""`hpsv2.1`: the Human Preference Score v2.1, 100 x the cosine of an image and its prompt.

The recipe of `hpsv2.evaluate(root, hps_version="v2.1")` (tgxs002/HPSv2, 866735e): ViT-H/14 with plain GELU. Numbers
from elsewhere can differ for three reasons:

- pi-Flow builds the model with the quick form of GELU, another activation than the weights were tuned with. It also
  clamps the resized image.
- The package computes in float16 on a GPU; this scorer computes in float32.
- The package resizes with antialiasing only where torchvision does so by default (from 0.17 on); this scorer always
  does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from pipeline.benchmarking.scorers import Entry, Weight, cosine, pixels
from pipeline.benchmarking.scorers.loading import file

ARCHITECTURE = "ViT-H-14"
SIDE = 224
WEIGHT = Weight(
    name="hps",
    hub="xswu/HPSv2@697403c78157020a1ae59d23f111aa58ced35b0a",
    file="HPS_v2.1_compressed.pt",
    sha256="c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837",
    licence="Apache-2.0 by its model card",
)


def prepare(image: Image.Image) -> torch.Tensor:
    """A whole image at 224 pixels on its longest side, with black around it, float32 (3, 224, 224) as CLIP reads it."""
    x = pixels.read(image)
    scale = SIDE / max(x.shape[1:])
    x = pixels.resize(x, round(x.shape[1] * scale), round(x.shape[2] * scale))
    below, right = SIDE - x.shape[1], SIDE - x.shape[2]
    x = F.pad(x, (right // 2, right - right // 2, below // 2, below - below // 2))
    return pixels.standardise(x)


def load(places: Mapping[str, Path], device: torch.device) -> cosine.Cosine:
    """Loads the scorer. Raises ValueError if the file is a wrong one."""
    state = torch.load(file(WEIGHT, places), map_location="cpu", weights_only=True)["state_dict"]
    return cosine.build(ARCHITECTURE, field="hps", weight=WEIGHT, state=state, prepare=prepare, device=device)


HPS = Entry(
    name="hpsv2.1",
    version=1,
    about="Which image people would prefer for its prompt, by the Human Preference Score v2.1: 100 x the cosine.",
    weights=(WEIGHT,),
    packages=("ftfy", "open-clip-torch", "torch"),
    load=load,
)
