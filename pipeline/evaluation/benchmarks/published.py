"""Numbers that others published for a model."""

from __future__ import annotations

from pipeline.evaluation.benchmarks.official import Published


def qwen_image(metric: str, value: float) -> Published:
    """Qwen-Image in 50 guided steps, 100 forwards, as the authors of PDD measured it."""
    return Published(model="qwen-image", metric=metric, value=value, where="PDD, arXiv 2607.26004, 50 guided steps")
