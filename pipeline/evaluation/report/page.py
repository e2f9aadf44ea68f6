"""The report: one self-contained HTML page, from the headline numbers down to the provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline import artifacts
from pipeline.evaluation.arms import ShownArm
from pipeline.evaluation.benchmarks.appearance import APPEARANCE
from pipeline.evaluation.benchmarks.scenes import SCENES
from pipeline.evaluation.benchmarks.speed import SPEED
from pipeline.evaluation.recipes import PRODUCT, REFERENCE
from pipeline.evaluation.report import figures
from pipeline.evaluation.report.cells import NARROW, between, column_label, fixed, percent, ratio_cells, value_cell
from pipeline.evaluation.report.content import Content
from pipeline.evaluation.report.figures import Line, Point
from pipeline.evaluation.report.gallery import gallery
from pipeline.evaluation.report.markup import column, table, tag, text
from pipeline.evaluation.report.theme import CSS
from pipeline.evaluation.report.verdicts import RIVALS, verdicts

GUIDED_CURVE = (REFERENCE, "base_guided", "base_guided_equal_cost")  # the same guided model at three costs
LOSS_STYLES = {"slow": "slow", "fast": "fast", "single": "base"}  # colours of the loss curves, else the teacher's
SHOWN = 4  # prompts shown side by side before the folded part
TABLE = (*SCENES.columns, SPEED[0])  # the columns of "Every arm"


def page(content: Content) -> str:
    """The whole report as HTML text, without scripts and without anything that a browser must fetch."""
    head = (
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", text(_title(content))),
        tag("style", CSS),
    )
    sections = (
        *(_headline, _side_by_side, _arms, _quality, _appearance, _speed),
        *(_failures, _tasks, _training, _provenance),
    )
    main = tag("main", *(section(content) for section in sections))
    return f"<!doctype html>\n{tag('html', tag('head', *head), tag('body', main), lang='en')}\n"


def write(content: Content, file: Path) -> None:
    """Writes the page, whole."""
    markup = page(content)
    with artifacts.atomic_file(file) as partial:
        partial.write_text(markup, encoding="utf-8")


def kind(arm: str) -> str:
    """The CSS class of an arm: teacher, base, student or control."""
    if arm in (REFERENCE, PRODUCT):
        return arm
    return "base" if arm.startswith("base") else "control"


def _note(words: str) -> str:
    return tag("p", text(words), css="soft")


def _section(title: str, *children: str) -> str:
    return tag("section", tag("h2", text(title)), *children)


def _row(arm: ShownArm, cells: Sequence[str], question: bool = False) -> str:
    small = tag("small", text(arm.question)) if question else ""
    head = tag("th", text(arm.title), small, scope="row")
    return tag("tr", head, *(tag("td", cell) for cell in cells), css=kind(arm.name))


def _title(content: Content) -> str:
    teacher, student = (content.metrics["arms"][name] for name in (REFERENCE, PRODUCT))
    return f"{student['steps']} steps for {teacher['steps']}: what the slow-fast student keeps of its teacher"


def _headline(content: Content) -> str:
    metrics = content.metrics
    teacher, student = metrics["arms"][REFERENCE], metrics["arms"][PRODUCT]
    kept = (fixed(student["ssim"], 3), "SSIM to the teacher's images, mean over prompts")
    if student["retention"] is not None:
        interval = between(student["retention_low"], student["retention_high"])
        kept = (percent(student["retention"]), f"of the teacher's checker score kept (95{NARROW}% interval {interval})")
    numbers = (
        kept,
        (f"{student['speedup_batch1']:.1f}×", "as fast as the teacher, end to end, one image at a time"),
        (str(student["nfe"]), f"forwards per image instead of {teacher['nfe']}"),
    )
    cards = (tag("div", tag("b", text(value)), tag("span", text(words))) for value, words in numbers)
    unseen = " that no adapter was trained on" if content.trained_here else "; the pair was trained elsewhere"
    return tag(
        "header",
        tag("h1", text(_title(content))),
        _note(
            f"Measured on {metrics['prompts']} prompts{unseen}. Every arm starts from the same noise for the same"
            " prompt."
        ),
        tag("div", *cards, css="numbers"),
        _unscored(metrics),
        tag("ul", *(tag("li", text(words), css=css) for css, words in verdicts(metrics, content.arms)), css="verdicts"),
    )


def _unscored(metrics: Mapping) -> str:
    """A card that says why there is no retention; "" if there is one."""
    if metrics["unscored"]:
        reason = f"No checker score: {metrics['unscored']}."
    elif metrics["arms"][PRODUCT]["retention"] is None:
        reason = "No retention: the teacher passes no prompt."
    else:
        return ""
    return tag("p", text(f"{reason} What remains is the distance to the teacher's images."), css="card")


def _side_by_side(content: Content) -> str:
    marks = "" if content.metrics["unscored"] else " A tick or a cross is the checker's verdict on the caption."
    note = _note(f"The same prompts from the same noise, taken evenly from the list and not picked.{marks}")
    first, rest = content.side_by_side[:SHOWN], content.side_by_side[SHOWN:]
    folded = ""
    if rest:
        summary = tag("summary", text(f"{len(rest)} more prompt{'s' if len(rest) > 1 else ''}"))
        folded = tag("details", summary, gallery(content.titles, rest))
    return _section("Side by side", note, gallery(content.titles, first), folded)


def _arms(content: Content) -> str:
    metrics = content.metrics["arms"]
    highest = SCENES.main.keys[-1]
    full = 1.02 * max(1.0, *(row[highest] or 0.0 for row in metrics.values()))
    rows, names = [], []
    for measure in TABLE:
        names += [column_label(measure)] + [""] * (measure is SCENES.main)
    for arm in content.arms:
        row, cells = metrics[arm.name], []
        for measure in TABLE:
            if measure is SCENES.main:
                ratio, low, high = (row[key] for key in measure.keys)
                cells += ratio_cells(ratio, low, high, kind(arm.name), full)
            else:
                cells.append(value_cell(measure, row[measure.key]))
        rows.append(_row(arm, cells, question=True))
    heads = [column("Arm", css="text"), *(column(name) for name in names)]
    note = _note(" ".join(measure.note for measure in TABLE if measure.note))
    return _section("Every arm", note, table("Every arm", [heads], rows))


def _quality(content: Content) -> str:
    metrics, titles = content.metrics["arms"], {arm.name: arm.title for arm in content.arms}
    curve, cards = [titles[name] for name in GUIDED_CURVE], []
    if metrics[PRODUCT]["retention"] is not None:
        points = [
            Point(row["nfe"], row["retention"], titles[name], kind(name), row["retention_low"], row["retention_high"])
            for name, row in metrics.items()
        ]
        title = "Retention of the checker score over forwards per image"
        chart = figures.over_nfe(points, curve, "retention", title, figures.percent)
        cards.append(_card(chart, "Up and left is better. Dashed: the guided model in fewer steps."))
    points = [
        Point(row["nfe"], row["fd_scenes"], titles[name], kind(name))
        for name, row in metrics.items()
        if name != REFERENCE and row["fd_scenes"]
    ]
    if points:
        title = "fd_scenes to the teacher's images over forwards per image"
        chart = figures.over_nfe(points, curve, "fd_scenes", title, log=True)
        cards.append(_card(chart, "Down and left is better. The teacher is at 0, below every logarithmic scale."))
    return _section("Quality over cost", tag("div", *cards, css="pair")) if cards else ""


def _appearance(content: Content) -> str:
    metrics = content.metrics["arms"]
    rows = [
        _row(arm, [value_cell(measure, metrics[arm.name][measure.key]) for measure in APPEARANCE])
        for arm in content.arms
    ]
    heads = [column("Arm", css="text"), *(column(column_label(measure)) for measure in APPEARANCE)]
    note = _note(" ".join(measure.note for measure in APPEARANCE if measure.note))
    return _section("Colour and detail", note, table("Colour and detail", [heads], rows))


def _card(chart: str, caption: str) -> str:
    return tag("figure", chart, tag("figcaption", text(caption)), css="card")


def _speed(content: Content) -> str:
    metrics, batches = content.metrics, content.metrics["latency_batches"]
    spans = (("end to end", "latency", ""), ("loop", "loop", "loop_"))
    parts = [(batch, *span) for batch in batches for span in spans]
    rows = []
    for arm in content.arms:
        row, cells = metrics["arms"][arm.name], []
        for batch, _, name, prefix in parts:
            cells.append(f"{row[f'{name}_ms_batch{batch}']:.1f}")
            cells.append(f"{row[f'{prefix}speedup_batch{batch}']:.1f}×")
        rows.append(_row(arm, cells))
    groups = (tag("th", text(f"batch {batch}, {words}"), scope="colgroup", colspan=2) for batch, words, _, _ in parts)
    heads = [
        [column("Arm", css="text", rowspan=2), *groups],
        [column(name) for _ in parts for name in ("ms", "speed-up")],
    ]
    titles = {arm.name: arm.title for arm in content.arms}
    timed_as = metrics["timed_as"].items()
    shared = "".join(f" {titles[arm]}: timed as {titles[other]}, which does the same work." for arm, other in timed_as)
    note = _note(
        f"Medians over {metrics['latency_repeats']} timings, each right after an untimed one of the same arm; the arms"
        f" take turns in one run on {metrics['device']}."
        " End to end is text encoding, denoising loop and decoding; loop is the denoising alone. Adapters act as"
        " full weights in float32, and as products beside the layers in 16 bits and on a quantised base."
        " A guided step is two forwards, one after the other, as in the stock pipeline."
        f" Times are for a whole batch.{shared}"
    )
    return _section("Speed", note, table("Speed", heads, rows))


def _failures(content: Content) -> str:
    counts = content.metrics["agreement"]
    if counts is None:
        return ""
    rows = [
        tag("tr", tag("th", text(name), scope="row"), *(tag("td", str(counts[key])) for key in keys))
        for name, keys in (
            ("teacher passes", ("both", "teacher_only")),
            ("teacher fails", ("student_only", "neither")),
        )
    ]
    heads = [[tag("td"), column("student passes"), column("student fails")]]
    shown = _note("There is no prompt that the teacher gets right and the student does not.")
    if content.failures:
        total = counts["teacher_only"]
        words = f"{len(content.failures)} of the {total} prompts that the teacher gets right and the student does not"
        shown = tag("h3", text(words)) + gallery(content.failure_titles, content.failures)
    return _section("Where the student fails", table("Prompts by who passes them", heads, rows), shown)


def _tasks(content: Content) -> str:
    by_arm = content.metrics["tasks"]
    if not by_arm[REFERENCE]:
        return ""
    columns = [arm for arm in content.arms if arm.name in (REFERENCE, *RIVALS, PRODUCT)]
    rows = []
    for task, teacher in by_arm[REFERENCE].items():
        scores = [by_arm[arm.name][task] for arm in columns]
        cells = [
            text(percent(score["score"])) + tag("span", text(between(score["low"], score["high"])), css="range")
            for score in scores
        ]
        head = tag("th", text(task.replace("_", " ")), scope="row")
        rows.append(tag("tr", head, *(tag("td", cell) for cell in (str(teacher["n"]), *cells))))
    heads = [column("Task", css="text"), column("Prompts"), *(column(arm.title) for arm in columns)]
    note = _note(
        "Share of prompts whose image the checker passes, with Wilson's 95 % interval. On rendered scenes of the same"
        f" prompts, which are right by construction, the checker passes {percent(content.metrics['checker_truth'])}."
    )
    return _section("Score per task", note, table("Score per task", [heads], rows))


def _training(content: Content) -> str:
    cards = []
    lines = [Line(points, name, LOSS_STYLES.get(name, "teacher")) for name, points in content.histories.items()]
    if any(loss > 0 for line in lines for _, loss in line.points):
        chart = figures.losses(lines, "Training loss of every adapter")
        cards.append(
            _card(
                chart,
                "Each train step faint, a running mean on top. Objectives and noise levels differ between adapters, so"
                " compare slopes, not heights.",
            )
        )
    title = "Signal-to-noise ratio over the teacher's steps"
    chart = figures.snr_over_steps(content.snr, content.phases, title)
    cards.append(_card(chart, "The student's steps on the teacher's path, and each handoff to the next phase."))
    return _section("Training", tag("div", *cards, css="pair"))


def _provenance(content: Content) -> str:
    items = content.provenance.items()
    entries = (tag("dt", text(name)) + tag("dd", tag("code", text(value))) for name, value in items)
    params = tag("pre", text(json.dumps(content.params, indent=2)), tabindex=0)
    return _section(
        "Provenance",
        tag("div", tag("dl", *entries), css="card"),
        tag("details", tag("summary", "Parameters"), params),
    )
