"""LongText-Bench: how many of the wanted words Qwen2.5-VL reads in an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from pipeline.benchmarking.scorers import Entry
from pipeline.benchmarking.scorers.model_files import QWEN_PACKAGES, QWEN_VL
from pipeline.evaluation.benchmarks import text_measures
from pipeline.evaluation.benchmarks.official import Item

if TYPE_CHECKING:
    import torch

    from pipeline.benchmarking.scorers.qwen_vl import QwenVL

READING = (
    "Recognize the text in the image, only reply with the text content, but avoid repeating previously mentioned"
    " content. If no text is recognized, please reply with 'No text recognized'."
)
LONGEST = 1024  # tokens of an answer


@dataclass(frozen=True, kw_only=True)
class LongtextOcr:
    """The scorer `longtext_ocr`, for prompts with extra `text` (a list of texts) and `language` ("en" or "zh").

    The official code samples tokens at the temperature of the model's folder, which is almost 0. This scorer takes the
    likeliest token.
    """

    model: QwenVL

    def fields(self, images: Sequence[Image.Image], items: Sequence[Item]) -> list[dict[str, float | str]]:
        """`matched` and `words`, see `text_measures.longtext`; `text`: the answer of the model.

        Raises:
            ValueError: A prompt lacks its texts or its language.
        """
        wanted = [_wanted(item) for item in items]
        read = self.model.answers(images, [READING] * len(images), LONGEST)
        return [
            {**text_measures.longtext(texts, answer, language), "text": answer}
            for (texts, language), answer in zip(wanted, read, strict=True)
        ]


def _wanted(item: Item) -> tuple[list[str], str]:
    texts, language = item.extra.get("text"), item.extra.get("language")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"longtext_ocr: the text of {item.id} must be a list of texts, got {texts!r}")
    if language not in text_measures.LANGUAGES:
        raise ValueError(f"longtext_ocr: the language of {item.id} must be en or zh, got {language!r}")
    return texts, language


def _load(places: Mapping[str, Path], device: torch.device) -> LongtextOcr:
    from pipeline.benchmarking.scorers import qwen_vl

    return LongtextOcr(model=qwen_vl.load(places[QWEN_VL.name], device))


LONGTEXT_OCR = Entry(
    name="longtext_ocr",
    version=1,
    about="How many of the words that a prompt asks for Qwen2.5-VL reads in the image, as LongText-Bench counts them.",
    weights=(QWEN_VL,),
    packages=QWEN_PACKAGES,
    load=_load,
)
