"""`clip`: CLIP score, 100 x the cosine of CLIP's features of an image and its prompt.

ViT-L/14 at 336 pixels with OpenAI's weights, and images prepared as pi-Flow (Lakonik/piFlow, 4229541) does. pi-Flow
prints the cosine itself and computes in float16; this scorer gives 100 x the cosine, in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline.benchmarking.scorers import Entry, Weight, cosine, pixels
from pipeline.benchmarking.scorers.loading import file

ARCHITECTURE = "ViT-L-14-336-quickgelu"  # OpenAI trained with the quick form of GELU
SIDE = 336
WEIGHT = Weight(
    name="clip",
    hub="timm/vit_large_patch14_clip_336.openai@81e38efc4637de5023b10e75a7f9bd1c6fa6b010",
    file="open_clip_model.safetensors",
    sha256="fbc415c3d0d7b79faed8f5ccfb740c32b7c4f5ffe7283b851f89c6231c01a8e0",
    licence="MIT, as OpenAI's CLIP",
)


def prepare(image: Image.Image) -> torch.Tensor:
    """The middle square of an image at 336 pixels, float32 (3, 336, 336) as CLIP reads it."""
    x = pixels.read(image)
    scale = SIDE / min(x.shape[1:])
    x = pixels.resize(x, round(x.shape[1] * scale), round(x.shape[2] * scale)).clamp(0, 1)
    return pixels.standardise(pixels.centre(x, SIDE))


def load(places: Mapping[str, Path], device: torch.device) -> cosine.Cosine:
    """Loads the scorer. Raises ValueError if the file is a wrong one."""
    state = load_file(file(WEIGHT, places))
    return cosine.build(ARCHITECTURE, field="clip", weight=WEIGHT, state=state, prepare=prepare, device=device)


CLIP = Entry(
    name="clip",
    version=1,
    about="How well an image fits its prompt by CLIP ViT-L/14 at 336 pixels: 100 x the cosine.",
    weights=(WEIGHT,),
    packages=("ftfy", "open-clip-torch", "torch"),
    load=load,
)
