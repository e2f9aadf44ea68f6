"""VQAScore by Qwen2.5-VL: how probable "Yes" is after "Does this figure show the prompt?"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from pipeline.benchmarking.scorers import Entry
from pipeline.benchmarking.scorers.model_files import QWEN_PACKAGES, QWEN_VL
from pipeline.evaluation.benchmarks.official import Item

if TYPE_CHECKING:
    import torch

    from pipeline.benchmarking.scorers.qwen_vl import QwenVL

QUESTION = 'Does this figure show "{}"? Please answer Yes or No.'


@dataclass(frozen=True, kw_only=True)
class VqaQwen:
    """The scorer `vqascore_qwen2.5-vl-7b`: the score of t2v_metrics 3.1, which has another scale than CLIP-FlanT5's.

    If the model's likeliest first token is the end of its answer, t2v_metrics fails. This scorer gives the image a
    score like any other.
    """

    model: QwenVL

    def fields(self, images: Sequence[Image.Image], items: Sequence[Item]) -> list[dict[str, float | str]]:
        """`vqascore`: the probability of "Yes" as the first token of the answer, in [0, 1]."""
        scores = self.model.probabilities(images, [QUESTION.format(item.prompt) for item in items], "Yes")
        return [{"vqascore": score} for score in scores]


def _load(places: Mapping[str, Path], device: torch.device) -> VqaQwen:
    from pipeline.benchmarking.scorers import qwen_vl

    return VqaQwen(model=qwen_vl.load(places[QWEN_VL.name], device))


VQA_QWEN = Entry(
    name="vqascore_qwen2.5-vl-7b",
    version=1,
    about="How probable Qwen2.5-VL finds it that the image shows the prompt.",
    weights=(QWEN_VL,),
    packages=QWEN_PACKAGES,
    load=_load,
)
