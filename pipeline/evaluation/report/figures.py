"""Charts as inline SVG. Colours come from the page's CSS classes and so follow its light or dark mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.evaluation.report.markup import tag, text

LABEL_GAP = 14  # px between the baselines of neighbouring labels
LETTER = 6.8  # px, largest width of a letter in a label
WIDTH = 520  # px
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 16, 44  # px, margins
LABELS = 114  # px to the right of a chart whose lines are labelled at their ends
PHASE_STYLES = ("slow", "fast")  # CSS classes of the phases, in turn


@dataclass(frozen=True)
class Point:
    """A labelled mark with an interval; `kind` is its CSS class."""

    x: float
    y: float
    label: str
    kind: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """A named curve of (x, y) pairs; `kind` is its CSS class."""

    points: Sequence[tuple[float, float]]
    label: str
    kind: str


@dataclass(frozen=True)
class Axis:
    """One direction of a chart: data to pixels.

    Attributes:
        low: Data at the first pixel.
        high: Data at the last pixel, other than low.
        start: First pixel.
        end: Last pixel.
        log: Whether the axis is logarithmic; low and high must then be above 0.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = math.log(max(value, self.low)) if self.log else value
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values along the axis: powers of ten (times 2 and 5 if these are few), or four to eight even steps."""
        low, high = sorted((self.low, self.high))
        if self.log:
            decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            factors = (1,) if len(decades) > 5 else (1, 2, 5)
            return [m * 10.0**d for d in decades for m in factors if low * 0.999 <= m * 10.0**d <= high * 1.001]
        step = 10.0 ** math.floor(math.log10((high - low) / 4))
        step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 8)
        return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A short decimal of three significant digits; a power of ten where it is tiny or huge."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def percent(value: float) -> str:
    """A ratio as whole percent."""
    return f"{100 * value:.0f} %"


def over_nfe(
    points: Sequence[Point],
    curve: Sequence[str],
    y_label: str,
    title: str,
    y_text: Callable[[float], str] = number,
    log: bool = False,
) -> str:
    """Quality over forwards per image.

    Args:
        points: One per arm, x its NFE.
        curve: Labels of the points that a line connects: the same model at different costs.
        y_label: Label of the y axis.
        title: For readers who do not see the picture.
        y_text: Formats a tick of y.
        log: Whether y is logarithmic; values must then be above 0.
    """
    height = 360
    values = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    low, high = (min(values) / 1.4, max(values) * 1.4) if log else (0.0, max(*values, 1e-9) * 1.06)
    costs = sorted({p.x for p in points})
    x = Axis(min(costs) * 0.8, max(costs) * 1.3, LEFT, WIDTH - RIGHT, log=True)
    y = Axis(low, high, height - BOTTOM, TOP, log)

    marks: list[str] = []
    places: dict[str, tuple[float, float]] = {}
    taken: list[tuple[float, float, float]] = []
    for nfe in costs:
        group = sorted((p for p in points if p.x == nfe), key=lambda p: y(p.y))
        side = 1 if x(nfe) < (x.start + x.end) * 0.6 else -1  # labels go where there is room
        fan = min(len(group) - 1, 3)
        text_x = x(nfe) + side * (9.0 * fan + 14)
        labels = _apart([y(p.y) + 4 for p in group], LABEL_GAP, y.end + 4, y.start - 4)
        for i, (point, label_y) in enumerate(zip(group, labels, strict=True)):
            at = x(nfe) + side * 9.0 * (i % (fan + 1))  # side by side, so that intervals can be told apart
            places[point.label] = (at, y(point.y))
            first, last = sorted((text_x, text_x + side * LETTER * len(point.label)))
            label_y = _free((first, last), label_y, taken, y.end + 4, y.start - 4)
            taken.append((first, last, label_y))
            marks += _mark(point, at, y, text_x, label_y, side)
    connected = sorted(places[label] for label in curve if label in places)
    frame = _frame(x, y, "forwards per image (NFE)", y_label, costs, y_text)
    return _svg(height, title, [*frame, _path(connected, "curve"), *marks])


def _mark(point: Point, at: float, y: Axis, text_x: float, text_y: float, side: int) -> list[str]:
    """A dot with its interval, and its label at the end of a leader."""
    centre, anchor = y(point.y), "start" if side > 0 else "end"
    parts = [tag("line", css="leader", x1=at, y1=centre, x2=text_x - 3.0 * side, y2=text_y - 4.0)]
    if point.low is not None and point.high is not None:
        parts.append(tag("line", css=f"interval {point.kind}", x1=at, x2=at, y1=y(point.low), y2=y(point.high)))
    parts.append(tag("circle", css=f"dot {point.kind}", cx=at, cy=centre, r=6 if point.kind == "student" else 4.5))
    parts.append(tag("text", text(point.label), css=f"mark {point.kind}", x=text_x, y=text_y, text_anchor=anchor))
    return parts


def losses(lines: Sequence[Line], title: str) -> str:
    """Loss over train steps, logarithmic: every train step faint, a running mean on top.

    Args:
        lines: One per adapter; a loss of 0, which a logarithm cannot show, is left out.
        title: For readers who do not see the picture.

    Raises:
        ValueError: If no loss is above 0.
    """
    height = 300
    lines = [Line([p for p in line.points if p[1] > 0], line.label, line.kind) for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        raise ValueError("a chart of losses needs at least one loss above 0, got none")
    steps = [step for line in lines for step, _ in line.points]
    values = [loss for line in lines for _, loss in line.points]
    x = Axis(min(steps), max(max(steps), min(steps) + 1), LEFT, WIDTH - RIGHT - LABELS)
    y = Axis(min(values) / 1.1, max(values) * 1.1, height - BOTTOM, TOP, log=True)

    means = [_running_mean([loss for _, loss in line.points], max(1, len(line.points) // 25)) for line in lines]
    labels = _apart([y(mean[-1]) + 4 for mean in means], LABEL_GAP, y.end + 4, y.start)
    parts = _frame(x, y, "train step", "loss", x.ticks(), number)
    for line, mean, label_y in zip(lines, means, labels, strict=True):
        raw = [(x(step), y(loss)) for step, loss in line.points]
        smooth = [(at, y(loss)) for (at, _), loss in zip(raw, mean, strict=True)]
        parts += [_path(raw, f"loss faint {line.kind}"), _path(smooth, f"loss {line.kind}")]
        parts.append(tag("text", text(line.label), css=f"mark {line.kind}", x=x.end + 10.0, y=label_y))
    return _svg(height, title, parts)


def snr_over_steps(snr: Sequence[float], phases: Mapping[str, Sequence[int]], title: str) -> str:
    """The teacher's signal-to-noise ratio at every step, the student's steps as marks, the handoffs as lines.

    Args:
        snr: SNR at the start of each teacher step; 0 (pure noise), which has no logarithm, is drawn at the bottom.
        phases: Teacher steps at which the student's steps start, by phase, in order.
        title: For readers who do not see the picture.
    """
    height = 300
    shown = [value for value in snr if value > 0]
    x = Axis(0, max(len(snr) - 1, 1), LEFT, WIDTH - RIGHT)
    y = Axis(min(shown) / 2, max(shown) * 1.6, height - BOTTOM, TOP, log=True)
    handoffs = [steps[0] for steps in phases.values()][1:]
    parts = _frame(x, y, "teacher step", "signal-to-noise ratio", x.ticks(), number)
    parts += [tag("line", css="handoff", x1=x(at), x2=x(at), y1=y.end, y2=y.start) for at in handoffs]
    if handoffs:
        label = f"handoff at step {', '.join(map(str, handoffs))}"
        parts.append(tag("text", text(label), css="mark", x=x(handoffs[0]) + 7, y=y.start - 8.0))
    parts.append(_path([(x(i), y(value)) for i, value in enumerate(snr)], "curve"))
    for row, (name, steps) in enumerate(phases.items()):
        kind = PHASE_STYLES[row % len(PHASE_STYLES)]
        parts += [tag("circle", css=f"dot {kind}", cx=x(step), cy=y(snr[step]), r=5) for step in steps]
        legend = y.end + 12 + 18 * row
        parts.append(tag("circle", css=f"dot {kind}", cx=x.start + 18, cy=legend, r=5))
        parts.append(tag("text", text(f"{len(steps)} {name} steps"), css=f"mark {kind}", x=x.start + 30, y=legend + 4))
    return _svg(height, title, parts)


def bar(value: float, low: float, high: float, kind: str, full: float) -> str:
    """A bar for a table cell: `value` on a scale from 0 to `full`, with its interval and a line at 1."""
    width, height = 100, 16
    x = Axis(0, full, 0, width)
    parts = (
        tag("rect", css="track", x=0, y=5, width=width, height=6, rx=3),
        tag("rect", css=f"fill {kind}", x=0, y=5, width=max(x(value), 1.0), height=6, rx=3),
        tag("line", css="one", x1=x(1), x2=x(1), y1=0, y2=height),
        tag("line", css=f"interval {kind}", x1=x(low), x2=x(high), y1=8, y2=8),
    )
    return tag("svg", *parts, css="bar", viewBox=f"0 0 {width} {height}", aria_hidden="true")


def _frame(
    x: Axis, y: Axis, x_label: str, y_label: str, x_ticks: Sequence[float], y_text: Callable[[float], str]
) -> list[str]:
    parts = [tag("line", css="axis", x1=x.start, x2=x.end, y1=y.start, y2=y.start)]
    for tick in y.ticks():
        at = y(tick)
        parts.append(tag("line", css="grid", x1=x.start, x2=x.end, y1=at, y2=at))
        parts.append(tag("text", text(y_text(tick)), css="tick", x=x.start - 8, y=at + 4, text_anchor="end"))
    for tick in x_ticks:
        parts.append(tag("text", text(number(tick)), css="tick", x=x(tick), y=y.start + 18, text_anchor="middle"))
    middle = (x.start + x.end) / 2
    parts.append(tag("text", text(x_label), css="label", x=middle, y=y.start + 37, text_anchor="middle"))
    turned = f"translate(14 {(y.start + y.end) / 2:.1f}) rotate(-90)"
    parts.append(tag("text", text(y_label), css="label", transform=turned, text_anchor="middle"))
    return parts


def _path(points: Sequence[tuple[float, float]], kind: str) -> str:
    return tag("polyline", css=kind, points=" ".join(f"{a:.1f},{b:.1f}" for a, b in points))


def _svg(height: int, title: str, parts: Sequence[str]) -> str:
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=title)


def _apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves label places so that neighbours are `gap` apart and, where they fit, within [low, high]."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    for i, j in zip(order, order[1:], strict=False):
        moved[j] = max(moved[j], moved[i] + gap)
    limit = high
    for i in reversed(order):
        moved[i] = limit = min(moved[i], limit)
        limit -= gap
    floor = low
    for i in order:
        moved[i] = floor = max(moved[i], floor)
        floor += gap
    return moved


def _free(
    span: Sequence[float], at: float, taken: Sequence[tuple[float, float, float]], low: float, high: float
) -> float:
    """The baseline nearest to `at` within [low, high] where a label over `span` overlaps none of `taken`.

    Args:
        span: First and last pixel of the label.
        at: The preferred baseline.
        taken: First pixel, last pixel and baseline of each label already placed.
        low: The topmost baseline.
        high: The lowest baseline.
    """
    for offset in (sign * step for step in range(int(high - low)) for sign in (1, -1)):
        beside = (span[1] < first or span[0] > last for first, last, _ in taken)
        apart = (abs(at + offset - other) >= LABEL_GAP for _, _, other in taken)
        if low <= at + offset <= high and all(map(max, beside, apart)):
            return at + offset
    return at


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    return [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i + 1 - window) : i + 1])]
