"""Images side by side, as HTML."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.evaluation.pictures import SMALL, Row, data_uri
from pipeline.evaluation.report.markup import tag, text


def gallery(titles: Sequence[str], rows: Sequence[Row]) -> str:
    """One card per prompt, an image per arm in it, with the checker's mark where there is one.

    Args:
        titles: One per arm.
        rows: One per prompt.
    """
    articles = []
    for row in rows:
        verdict: Sequence[bool | None] = row.passed or [None] * len(titles)
        shots = (_shot(*shown, row.caption) for shown in zip(titles, row.images, verdict, strict=True))
        height, width = row.images[0].shape[:2]
        style = f"--ratio:{width}/{height}"
        articles.append(
            tag("article", tag("h3", text(row.caption)), tag("div", *shots, css="shots", style=style), css="row")
        )
    return tag("div", *articles, css="gallery", style=f"--n:{len(titles)}")


def _shot(title: str, image: np.ndarray, passed: bool | None, caption: str) -> str:
    height, width = image.shape[:2]
    heard = "" if passed is None else ", passes" if passed else ", fails"
    mark = ""
    if passed is not None:
        mark = tag("span", "✓" if passed else "✕", css=f"verdict {'yes' if passed else 'no'}", aria_hidden="true")
    picture = tag(
        "img",
        css="pixels" if max(height, width) <= SMALL else None,
        src=data_uri(image),
        alt=f"{title.splitlines()[0]}: {caption}{heard}",
        width=width,
        height=height,
    )
    return tag("figure", picture, mark, tag("figcaption", text(title)))
