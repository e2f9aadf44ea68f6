"""Which images are shown side by side, in the grid and in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.evaluation import samples
from pipeline.evaluation.images import ImageSet
from pipeline.evaluation.pictures import Row
from pipeline.evaluation.recipes import PRODUCT, REFERENCE

SIDE_BY_SIDE = (REFERENCE, "base_guided", "base_unguided", "base_guided_equal_cost", PRODUCT)
FAILURE_ARMS = (REFERENCE, "base_guided", PRODUCT)
MAX_FAILURES = 12  # failures of the student that the report shows

Passed = Mapping[str, np.ndarray | None]
"""By arm: the checker's verdict on each prompt, bool (N,); None where no checker reads the images."""


def titles(images: ImageSet, names: Sequence[str]) -> list[str]:
    """The headings over the images of the named arms."""
    by_name = {arm.name: arm for arm in images.arms}
    return [f"{by_name[name].title}\n{by_name[name].nfe} forwards" for name in names]


def side_by_side(images: ImageSet, passed: Passed, count: int) -> list[Row]:
    """Up to `count` prompts, evenly spaced in the list, across the arms of SIDE_BY_SIDE."""
    total = len(images.prompts)
    chosen = np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()
    return _rows(images, passed, SIDE_BY_SIDE, chosen)


def failures(images: ImageSet, passed: Passed) -> list[Row]:
    """The first prompts that the teacher gets right and the student does not, across the arms of FAILURE_ARMS."""
    teacher, student = passed[REFERENCE], passed[PRODUCT]
    if teacher is None or student is None:
        return []
    failed = np.flatnonzero(teacher & ~student)[:MAX_FAILURES].tolist()
    return _rows(images, passed, FAILURE_ARMS, failed)


def _rows(images: ImageSet, passed: Passed, names: Sequence[str], indices: Sequence[int]) -> list[Row]:
    by_name, prompts = {arm.name: arm for arm in images.arms}, images.prompts
    columns = [samples.pick(images.images, by_name[name], images.draws.prompts, indices) for name in names]
    verdicts = [passed[name] for name in names]
    return [
        Row(
            prompts[index],
            [column[i] for column in columns],
            [bool(verdict[index]) for verdict in verdicts if verdict is not None] or None,
        )
        for i, index in enumerate(indices)
    ]
