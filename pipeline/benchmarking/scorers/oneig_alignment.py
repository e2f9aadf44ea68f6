"""The alignment part of OneIG-Bench: which questions about a prompt Qwen2.5-VL answers with "Yes"."""

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

QUESTION = "{}. Please answer 'Yes' or 'No' only."
LONGEST = 128  # tokens of an answer
NO_PARENT = "0"


@dataclass(frozen=True, kw_only=True)
class OneigAlignment:
    """The scorer `oneig_alignment`, for prompts with extra `questions` and `dependencies`.

    `questions` maps an id to a question, `dependencies` an id to the ids of the question's parents, 0 for none.
    The official code reads cells of a grid that was saved as lossy WebP and then as JPEG, and leaves out black images.
    This scorer reads each image as generated, and a black image counts like any other.
    """

    model: QwenVL

    def fields(self, images: Sequence[Image.Image], items: Sequence[Item]) -> list[dict[str, float | str]]:
        """`alignment`: the share of questions that are answered with exactly "Yes", in [0, 1].

        A question counts as answered with "No" unless all of its parents were answered with "Yes". Only the parents'
        own answers decide, not those of the parents' parents.

        Raises:
            ValueError: A prompt lacks its questions or their dependencies.
        """
        graphs = [_graph(item) for item in items]
        asked = [
            (image, QUESTION.format(question))
            for image, (questions, _) in zip(images, graphs, strict=True)
            for question in questions.values()
        ]
        answers = iter(self.model.answers([image for image, _ in asked], [text for _, text in asked], LONGEST))
        found: list[dict[str, float | str]] = []
        for questions, parents in graphs:
            yes = {own: next(answers) == "Yes" for own in questions}
            counted = [yes[own] and all(yes[parent] for parent in parents[own]) for own in questions]
            found.append({"alignment": sum(counted) / len(counted)})
        return found


def _graph(item: Item) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The questions of a prompt and the parents of each question, both by the question's id."""
    asked, dependencies = item.extra.get("questions"), item.extra.get("dependencies")
    if not isinstance(asked, dict) or not isinstance(dependencies, dict) or not asked:
        raise ValueError(f"oneig_alignment: {item.id} must have questions and dependencies, got {dict(item.extra)}")
    questions = {str(own): str(text) for own, text in asked.items()}
    parents = {
        str(own): [str(parent) for parent in others if str(parent) != NO_PARENT] for own, others in dependencies.items()
    }
    if parents.keys() != questions.keys():
        raise ValueError(
            f"oneig_alignment: each question of {item.id} must have its dependencies,"
            f" got questions {', '.join(questions)} and dependencies of {', '.join(parents)}"
        )
    unknown = sorted({parent for others in parents.values() for parent in others} - questions.keys())
    if unknown:
        raise ValueError(f"oneig_alignment: a question of {item.id} must depend on another one, got {unknown[0]}")
    return questions, parents


def _load(places: Mapping[str, Path], device: torch.device) -> OneigAlignment:
    from pipeline.benchmarking.scorers import qwen_vl

    return OneigAlignment(model=qwen_vl.load(places[QWEN_VL.name], device))


ONEIG_ALIGNMENT = Entry(
    name="oneig_alignment",
    version=1,
    about="Which share of the questions about a prompt Qwen2.5-VL answers with Yes, as OneIG-Bench asks them.",
    weights=(QWEN_VL,),
    packages=QWEN_PACKAGES,
    load=_load,
)
