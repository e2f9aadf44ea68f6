"""How well an image fits its prompt: the cosine of their features by one of open_clip's models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from pipeline.benchmarking.scorers import Weight
from pipeline.benchmarking.scorers.exact import exact
from pipeline.benchmarking.scorers.loading import fill, package
from pipeline.evaluation.benchmarks.official import Item


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """A loaded scorer.

    Attributes:
        field: The name of the scorer's only field, 100 x the cosine.
        model: open_clip's CLIP in float32.
        tokenize: Maps texts to int64 (B, 77); a longer text is cut.
        prepare: Maps an image to float32 (3, S, S).
        device: Where the model lies.
    """

    field: str
    model: Any
    tokenize: Callable[[list[str]], torch.Tensor]
    prepare: Callable[[Image.Image], torch.Tensor]
    device: torch.device

    def fields(self, images: Sequence[Image.Image], items: Sequence[Item]) -> list[dict[str, float | str]]:
        """100 x the cosine of each image and its prompt. Raises ValueError unless there is one prompt per image."""
        if len(images) != len(items):
            raise ValueError(f"{self.field} needs one prompt for each image, got {len(items)} for {len(images)}")
        pixels = torch.stack([self.prepare(image) for image in images]).to(self.device)
        texts = self.tokenize([item.prompt for item in items]).to(self.device)
        with exact():
            seen = self.model.encode_image(pixels, normalize=True)
            read = self.model.encode_text(texts, normalize=True)
        return [{self.field: 100 * cosine} for cosine in (seen * read).sum(dim=1).tolist()]


def build(
    architecture: str,
    *,
    field: str,
    weight: Weight,
    state: Mapping[str, torch.Tensor],
    prepare: Callable[[Image.Image], torch.Tensor],
    device: torch.device,
) -> Cosine:
    """A scorer of one of open_clip's architectures.

    Raises:
        ValueError: open_clip does not load, or the weights belong to another architecture.
    """
    open_clip = package("open_clip")
    config = open_clip.get_model_config(architecture)
    model = open_clip.CLIP(**config)
    fill(model, state, weight)
    tokenize = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
    return Cosine(field=field, model=model.eval().to(device), tokenize=tokenize, prepare=prepare, device=device)
