"""The text part of OneIG-Bench: how far the text that Qwen2.5-VL reads in an image is from the wanted text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from pipeline.benchmarking.scorers import Entry
from pipeline.benchmarking.scorers.longtext_ocr import READING
from pipeline.benchmarking.scorers.model_files import QWEN_PACKAGES, QWEN_VL
from pipeline.evaluation.benchmarks import text_measures
from pipeline.evaluation.benchmarks.official import Item

if TYPE_CHECKING:
    import torch

    from pipeline.benchmarking.scorers.qwen_vl import QwenVL


@dataclass(frozen=True, kw_only=True)
class OneigText:
    """The scorer `oneig_text`, for prompts with extra `text`: the cell of the benchmark's table, unchanged.

    The official code reads cells of a grid that was saved as lossy WebP and then as JPEG. It leaves out black images.
    If all images of a prompt are black, it counts the answers to the previous prompt again. This scorer reads each
    image as generated, and a black image counts like any other.
    """

    model: QwenVL

    def fields(self, images: Sequence[Image.Image], items: Sequence[Item]) -> list[dict[str, float | str]]:
        """`ed`, `cr`, `wac_matched` and `wac_words`, see `text_measures.oneig`; `text`: the answer of the model.

        Raises:
            ValueError: A prompt lacks its text.
        """
        wanted = [_wanted(item) for item in items]
        read = [""] * len(images)
        longest = [256 if len(text.split()) > 60 else 128 for text in wanted]
        for limit in dict.fromkeys(longest):
            rows = [row for row, own in enumerate(longest) if own == limit]
            answers = self.model.answers([images[row] for row in rows], [READING] * len(rows), limit)
            for row, answer in zip(rows, answers, strict=True):
                read[row] = answer
        return [
            {**text_measures.oneig(text, answer), "text": answer} for text, answer in zip(wanted, read, strict=True)
        ]


def _wanted(item: Item) -> str:
    text = item.extra.get("text")
    if not isinstance(text, str):
        raise ValueError(f"oneig_text: the text of {item.id} must be a cell of text_content.csv, got {text!r}")
    return text


def _load(places: Mapping[str, Path], device: torch.device) -> OneigText:
    from pipeline.benchmarking.scorers import qwen_vl

    return OneigText(model=qwen_vl.load(places[QWEN_VL.name], device))


ONEIG_TEXT = Entry(
    name="oneig_text",
    version=1,
    about="How far the text that Qwen2.5-VL reads in the image is from the wanted one, as OneIG-Bench measures it.",
    weights=(QWEN_VL,),
    packages=QWEN_PACKAGES,
    load=_load,
)
