"""VQAScore by CLIP-FlanT5: how probable "Yes" is after "Does this figure show the prompt?"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from pipeline.benchmarking.scorers import Entry
from pipeline.benchmarking.scorers.model_files import CLIP_CONFIG, CLIP_FLANT5, FLAN_T5_TOKENIZER
from pipeline.evaluation.benchmarks.official import Item

if TYPE_CHECKING:
    import torch

    from pipeline.benchmarking.scorers.clip_flant5 import FigureQuestion


@dataclass(frozen=True, kw_only=True)
class VqaFlanT5:
    """The scorer `vqascore_clip-flant5-xxl`.

    Images are prepared as in pi-Flow's evaluation: an image is padded after normalisation and resized as a tensor.
    t2v_metrics pads with CLIP's mean colour in 8 bits and resizes with Pillow, which differs in the last digits. The
    softmax is in float32; pi-Flow's is in bfloat16. A question is read whole; both others cut it after 2048 tokens.
    """

    model: FigureQuestion

    def fields(self, images: Sequence[Image.Image], items: Sequence[Item]) -> list[dict[str, float | str]]:
        """`vqascore`: the geometric mean of the probabilities of "Yes" and of the end of the answer, in [0, 1]."""
        scores = self.model.scores(images, [item.prompt for item in items])
        return [{"vqascore": score} for score in scores]


def _load(places: Mapping[str, Path], device: torch.device) -> VqaFlanT5:
    from pipeline.benchmarking.scorers import clip_flant5

    return VqaFlanT5(model=clip_flant5.load(places, device))


VQA_FLANT5 = Entry(
    name="vqascore_clip-flant5-xxl",
    version=1,
    about="How probable CLIP-FlanT5 finds it that the image shows the prompt.",
    weights=(CLIP_FLANT5, CLIP_CONFIG, FLAN_T5_TOKENIZER),
    packages=("torch", "transformers", "tokenizers"),
    load=_load,
)
