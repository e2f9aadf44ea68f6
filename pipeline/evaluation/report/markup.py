"""HTML and SVG elements as text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

VOID = frozenset({"img", "meta", "line", "circle", "rect", "polyline"})  # elements without content and end tag


def text(value: object) -> str:
    """Any value as escaped text, which no browser takes for markup."""
    return escape(str(value), quote=True)


def tag(element: str, /, *children: str, css: str | None = None, **attributes: object) -> str:
    """An element.

    Args:
        element: Name of the element.
        children: Markup inside; plain words go through `text` first.
        css: The class attribute.
        attributes: Other attributes, underscores for hyphens; floats are written with one decimal, True as a bare name,
            None not at all.
    """
    parts = [element]
    for key, value in {"class": css, **attributes}.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(key)
        elif value is not None:
            parts.append(f'{key}="{text(f"{value:.1f}" if isinstance(value, float) else value)}"')
    head = " ".join(parts)
    if element in VOID:
        return f"<{head}/>"
    return f"<{head}>{''.join(children)}</{element}>"


def table(label: str, heads: Sequence[Sequence[str]], rows: Sequence[str]) -> str:
    """A table that scrolls on its own where the page is narrow, reachable by keyboard.

    Args:
        label: Name of the table for screen readers.
        heads: Rows of <th> elements.
        rows: <tr> elements.
    """
    head = tag("thead", *(tag("tr", *cells) for cells in heads))
    inner = tag("table", head, tag("tbody", *rows))
    return tag("div", inner, css="scroll", tabindex=0, role="region", aria_label=label)


def column(name: str, **attributes: Any) -> str:
    """The head of a column."""
    return tag("th", text(name), scope="col", **attributes)
