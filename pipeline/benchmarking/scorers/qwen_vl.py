"""Qwen2.5-VL as a reader of images: short answers, texts, and the probability of an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from qwen_vl_utils import process_vision_info
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from pipeline.benchmarking.scorers import model_files
from pipeline.benchmarking.scorers.model_files import QWEN_VL

ROWS = 16  # images in one call of the model


class QwenVL:
    """The model and its processor.

    Answers are greedy, with the repetition penalty of the model's folder, as in the official protocols. The penalty
    would count padding, so only rows of equal length share a call. So an image's answer does not depend on the other
    images, except for rounding.

    Args:
        model: The model, on its device.
        processor: The processor from the same folder.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor

    @torch.no_grad()
    def probabilities(self, images: Sequence[Image.Image], questions: Sequence[str], answer: str) -> list[float]:
        """The probability of an answer of one token, for each image with its question.

        Args:
            images: RGB images of any sizes.
            questions: One for each image.
            answer: The answer, such as "Yes".

        Raises:
            ValueError: The answer is not one token.
        """
        tokens = self.processor.tokenizer.encode(answer, add_special_tokens=False)
        if len(tokens) != 1:
            raise ValueError(f"the weight {QWEN_VL.name} must have one token for {answer!r}, got {len(tokens)}")
        found = [0.0] * len(images)
        for rows, inputs in self._calls(images, questions):
            result = self.model.generate(
                **inputs, do_sample=False, max_new_tokens=1, output_scores=True, return_dict_in_generate=True
            )
            values = result.scores[0].float().softmax(dim=-1)[:, tokens[0]].tolist()
            for row, value in zip(rows, values, strict=True):
                found[row] = value
        return found

    @torch.no_grad()
    def answers(self, images: Sequence[Image.Image], questions: Sequence[str], max_new_tokens: int) -> list[str]:
        """The answer to each image with its question.

        Args:
            images: RGB images of any sizes.
            questions: One for each image.
            max_new_tokens: Longer answers are cut after so many tokens.
        """
        found = [""] * len(images)
        for rows, inputs in self._calls(images, questions):
            tokens = self.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
            texts = self.processor.batch_decode(
                tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            for row, text in zip(rows, texts, strict=True):
                found[row] = text
        return found

    def _calls(self, images: Sequence[Image.Image], questions: Sequence[str]) -> Iterator[tuple[list[int], Any]]:
        """The rows of each call, with the model's inputs."""
        messages = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
            for image, question in zip(images, questions, strict=True)
        ]
        texts = [
            self.processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            for message in messages
        ]
        groups: dict[tuple[tuple[int, int], int], list[int]] = {}
        for row, (image, text) in enumerate(zip(images, texts, strict=True)):
            groups.setdefault((image.size, len(self.processor.tokenizer(text).input_ids)), []).append(row)
        for group in groups.values():
            for first in range(0, len(group), ROWS):
                rows = group[first : first + ROWS]
                pictures, _ = process_vision_info([messages[row] for row in rows])
                inputs = self.processor(text=[texts[row] for row in rows], images=pictures, return_tensors="pt")
                yield rows, inputs.to(self.model.device)


@lru_cache(maxsize=1)
def load(folder: Path, device: torch.device) -> QwenVL:
    """The model of a folder, loaded once for all scorers; bfloat16 on a GPU, float32 on the CPU.

    Raises:
        ValueError: The folder or a file is missing or unreadable, the model has another type, or a tensor is missing
            or of another shape.
    """
    model_files.require(QWEN_VL, folder, "config.json", "generation_config.json")
    kind = model_files.read_json(QWEN_VL, folder / "config.json").get("model_type")
    if kind != "qwen2_5_vl":
        raise ValueError(f"the weight {QWEN_VL.name} must be a model of type qwen2_5_vl, got {kind}")
    try:
        model, found = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder,
            dtype=torch.float32 if device.type == "cpu" else torch.bfloat16,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the type depends on the file and its fault
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"the weight {QWEN_VL.name} must be a whole folder, got {folder} ({reason})") from error
    wrong = sorted(found["missing_keys"] | {name for name, *_ in found["mismatched_keys"]})
    if wrong:
        raise ValueError(
            f"the weight {QWEN_VL.name} must have all tensors of its configuration, got {folder} with {len(wrong)}"
            f" missing or of another shape, such as {wrong[0]}"
        )
    known = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    if known != model.config.image_token_id:
        raise ValueError(
            f"the weight {QWEN_VL.name} must have a tokenizer whose {processor.image_token} is token"
            f" {model.config.image_token_id}, got {known} in {folder}"
        )
    if not processor.chat_template:
        raise ValueError(f"the weight {QWEN_VL.name} must have a chat template, got {folder} without")
    greedy = model.generation_config
    greedy.do_sample = False
    greedy.temperature = greedy.top_p = greedy.top_k = None
    return QwenVL(cast(Any, model).to(device).eval(), processor)
