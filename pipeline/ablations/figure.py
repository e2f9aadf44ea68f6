"""The plot of a question."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from pipeline.ablations.document import cells
from pipeline.ablations.grid import ARM, VARIANT, Grid
from pipeline.ablations.results import METRICS, Result
from pipeline.artifacts import atomic_file
from pipeline.evaluation.recipes import PRODUCT, titles

PANEL = (6.4, 3.3)  # inches
DPI = 110
COLOURS = {PRODUCT: "#0b7a5c", "teacher": "#3d3a36", "base_guided": "#b4540a", "base_unguided": "#d39a2d"}
OTHERS = ("#6a5fa8", "#2f7fb5", "#a8436b", "#7c7f2f", "#0b7a5c")
MARKERS = "osD^vPX"
LOG_X, LOG_Y = 4, 20  # ratio of an axis' ends from which the axis is logarithmic


def draw(grid: Grid, results: Sequence[Result], path: Path) -> None:
    """Writes the plot as PNG: the same results give the same bytes.

    Args:
        grid: The question; its `plot` says what is drawn.
        results: At least one result for the variants and arms of the plot.
        path: The file.
    """
    from matplotlib.figure import Figure  # the import takes a second, and only this function needs it

    figure = Figure(figsize=(PANEL[0] * len(grid.plot.y), PANEL[1]), layout="constrained")
    panels = figure.subplots(1, len(grid.plot.y), squeeze=False)[0]
    for axes, metric in zip(panels, grid.plot.y, strict=True):
        _panel(axes, grid, lines(grid, results, metric), metric)
    with atomic_file(path) as partial:
        figure.savefig(partial, format="png", dpi=DPI, metadata={"Software": None})


Mark = tuple[Any, float, float, float]
"""x, y, and the ends of the interval of y."""


def lines(grid: Grid, results: Sequence[Result], metric: str) -> dict[str, list[Mark]]:
    """The marks of a panel by line, each line by rising x.

    The interval is the range over seeds; for a single seed it is the 95 % interval, if the metric has one.
    """
    found: dict[str, list[Mark]] = {}
    for (variant, arm), those in cells(grid, results).items():
        values = [value for result in those if (value := result.metrics.get(metric)) is not None]
        x = _x(grid, variant, those[0])
        if x is None or len(values) < len(those):
            continue
        line = titles()[arm]
        if grid.plot.lines != ARM:
            setting = f"{grid.plot.lines.split('.')[1]} {grid.variants[variant][grid.plot.lines]}"
            line = setting if len(grid.arms) == 1 else f"{setting}, {line}"
        low, high = min(values), max(values)
        if len(values) == 1:
            ends = (those[0].metrics.get(f"{metric}_{end}") for end in ("low", "high"))
            low, high = (values[0] if end is None else end for end in ends)
        found.setdefault(line, []).append((x, mean(values), low, high))
    if _numeric(found):
        found = {line: sorted(marks) for line, marks in found.items()}
    return found


def _x(grid: Grid, variant: str, result: Result) -> Any:
    """The x of a variant: its label, a parameter that the variant sets, or a metric of the arm."""
    if grid.plot.x == VARIANT:
        return variant
    own = grid.variants[variant]
    return own[grid.plot.x] if grid.plot.x in own else result.metrics.get(grid.plot.x)


def _numeric(found: dict[str, list[Mark]]) -> bool:
    """Whether every x is a number; words are placed side by side in the grid's order."""
    return all(isinstance(x, int | float) for marks in found.values() for x, *_ in marks)


def _wide(values: Sequence[float], ratio: float) -> bool:
    return min(values) > 0 and max(values) / min(values) >= ratio


def _panel(axes: Any, grid: Grid, found: dict[str, list[Mark]], metric: str) -> None:
    axes.set_ylabel(METRICS[metric].label)
    if not found:  # no retention without a checker
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        return
    every = list(dict.fromkeys(x for marks in found.values() for x, *_ in marks))
    numeric = _numeric(found)
    place = {x: x if numeric else i for i, x in enumerate(every)}
    colours = {title: COLOURS.get(arm) for arm, title in titles().items()}
    others = iter(OTHERS * len(found))
    for i, (line, marks) in enumerate(found.items()):
        at, y, low, high = zip(*marks, strict=True)
        x = [place[spot] + (0 if numeric else 0.12 * (i - (len(found) - 1) / 2)) for spot in at]
        below = [max(value - end, 0) for value, end in zip(y, low, strict=True)]
        above = [max(end - value, 0) for value, end in zip(y, high, strict=True)]
        style = {"color": colours.get(line) or next(others), "marker": MARKERS[i % len(MARKERS)], "markersize": 5}
        joined = "-" if numeric and len(marks) > 1 else "none"
        axes.errorbar(x, y, yerr=[below, above], label=line, linestyle=joined, capsize=3, linewidth=1.3, **style)
    if numeric:
        if _wide(every, LOG_X):
            axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(every), [f"{x:g}" for x in sorted(every)])
        axes.minorticks_off()
    else:
        turned = {"rotation": 20, "ha": "right"} if max(len(str(x)) for x in every) * len(every) > 50 else {}
        axes.set_xticks(range(len(every)), [str(x) for x in every], **turned)
        axes.set_xlim(-0.5, len(every) - 0.5)
    if _wide([value for marks in found.values() for _, *values in marks for value in values], LOG_Y):
        axes.set_yscale("log")
    if METRICS[metric].unit == "%":
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    x_label = METRICS[grid.plot.x].label if grid.plot.x in METRICS else grid.plot.x
    axes.set_xlabel("" if grid.plot.x == VARIANT else x_label)
    axes.grid(axis="y", color="#e3dfd7")
    axes.spines[["top", "right"]].set_visible(False)
    if len(found) > 1:
        axes.legend(frameon=False, fontsize=8)
