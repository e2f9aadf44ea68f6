"""The benchmarks' report: one self-contained HTML page, from the headline numbers down to the provenance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline import artifacts, image_files
from pipeline.benchmarking import manifest, places
from pipeline.benchmarking.collect import REFERENCE, Collected, Row
from pipeline.benchmarking.manifest import Manifest
from pipeline.evaluation.benchmarks import Column
from pipeline.evaluation.pictures import Row as Shots
from pipeline.evaluation.report.cells import DASH, SUFFIXES, between, column_label, grade, percent
from pipeline.evaluation.report.gallery import gallery
from pipeline.evaluation.report.markup import column, table, tag, text
from pipeline.evaluation.report.theme import CSS

TITLE = "Official benchmarks"


def write(collected: Sequence[Collected], sides: int, folder: Path = places.RESULTS) -> Path:
    """Writes `report.html`, whole.

    Args:
        collected: Every benchmark.
        sides: How many prompts of each benchmark are shown side by side.
        folder: Where the page goes.
    """
    head = (
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", TITLE),
        tag("style", CSS),
    )
    main = tag("main", _headline(collected), *(_section(found, sides) for found in collected), _provenance(collected))
    page = f"<!doctype html>\n{tag('html', tag('head', *head), tag('body', main), lang='en')}\n"
    with artifacts.atomic_file(folder / "report.html") as partial:
        partial.write_text(page, encoding="utf-8")
    return folder / "report.html"


def _note(words: str) -> str:
    return tag("p", text(words), css="soft")


def _headline(collected: Sequence[Collected]) -> str:
    """The first number of every benchmark, for every arm."""
    arms = {own.arm: own.title for found in collected for own in found.manifests}
    rows = []
    for found in collected:
        if not found.rows:
            continue
        first = found.rows[0].metric
        by_arm = {row.arm: row for row in found.rows if row.metric == first}
        measure = _columns(found)[first]
        mark = tag("small", "a subset of the prompts") if found.rows[0].subset else ""
        cells = [tag("td", _cell(by_arm.get(arm), measure)) for arm in arms]
        label = tag("th", text(f"{found.benchmark.title}: {measure.title}"), mark, scope="row")
        rows.append(tag("tr", label, *cells))
    heads = [column("Benchmark", css="text"), *(column(title) for title in arms.values())]
    note = _note(
        "Every arm starts from the same noise for the same prompt. Below a score stands its retention, the score over"
        " the teacher's, with the 95 % interval of a paired bootstrap over prompts. Distances have no retention."
    )
    return tag("header", tag("h1", TITLE), note, table(TITLE, [heads], rows) if rows else "")


def _columns(found: Collected) -> dict[str, Column]:
    columns = [metric.column for metric in found.benchmark.metrics]
    columns += [distance.column for distance in found.benchmark.distances]
    return {measure.key: measure for measure in columns}


def _cell(row: Row | None, measure: Column) -> str:
    """A number, and below it the retention or the difference to the teacher's number."""
    if row is None:
        return DASH
    number = text(measure.number(row.value) + SUFFIXES.get(measure.unit, ""))
    if row.arm == REFERENCE:
        return number
    if row.retention is not None and row.retention_low is not None and row.retention_high is not None:
        chip = tag("span", text(percent(row.retention)), css=f"chip {grade(row.retention)}")
        return f"{number} {chip}" + tag("span", text(between(row.retention_low, row.retention_high)), css="range")
    if row.difference is not None:
        return number + tag("span", text(f"{row.difference:+.{measure.digits}f} to the teacher"), css="range")
    return number


def _section(found: Collected, sides: int) -> str:
    benchmark, measures = found.benchmark, _columns(found)
    shown = [key for key in measures if any(row.metric == key for row in found.rows)]
    by_place = {(row.arm, row.metric): row for row in found.rows}
    rows = []
    for own in found.manifests:
        cost = "made elsewhere" if own.nfe is None else f"{own.nfe} forwards per image"
        label = tag("th", text(own.title), tag("small", text(cost)), scope="row")
        cells = (tag("td", _cell(by_place.get((own.arm, key)), measures[key])) for key in shown)
        rows.append(tag("tr", label, *cells, css=own.arm if own.arm in (REFERENCE, "student") else None))
    published = {row.metric: row for row in found.rows if row.published is not None}
    if published:
        numbers = {key: measures[key].number(row.published or 0.0) for key, row in published.items()}
        cells = (tag("td", numbers.get(key, DASH)) for key in shown)
        where = ", ".join(dict.fromkeys(row.published_where for row in published.values()))
        rows.append(tag("tr", tag("th", "Teacher, published", tag("small", text(where)), scope="row"), *cells))
    heads = [column("Arm", css="text"), *(column(column_label(measures[key])) for key in shown)]
    first = found.manifests[0]
    prompts = len({name.split("_")[0] for name in first.images})
    subset = f", a subset of at most {first.limit} prompts of each category" if first.limit is not None else ""
    note = _note(f"{benchmark.about} {prompts} prompts with {first.seeds} images each in every arm{subset}.")
    waiting = ""
    if found.waiting:
        waiting = _note(f"Not scored yet: {', '.join(found.waiting)}. `glance benchmark score` says what each needs.")
    measured = table(benchmark.title, [heads], rows) if shown else ""
    return tag("section", tag("h2", text(benchmark.title)), note, measured, waiting, _pictures(found, sides))


def _pictures(found: Collected, sides: int) -> str:
    """The first image of evenly spaced prompts, with the arms side by side."""
    chosen = manifest.chosen(found.benchmark, found.manifests[0])
    if not sides or not chosen:
        return ""
    spots = np.unique(np.linspace(0, len(chosen) - 1, min(sides, len(chosen))).round().astype(int))
    rows = []
    for index, item in (chosen[spot] for spot in spots):
        manifest_images = [_image(own, index) for own in found.manifests]
        if all(image is not None for image in manifest_images):
            rows.append(Shots(item.prompt, [image for image in manifest_images if image is not None], None))
    titles = [own.title if own.nfe is None else f"{own.title}\n{own.nfe} forwards" for own in found.manifests]
    if not rows:
        return _note("The images are no longer on this machine.")
    return tag("h3", "Side by side") + gallery(titles, rows)


def _image(own: Manifest, index: int) -> np.ndarray | None:
    file = own.path(index, 0)
    return image_files.read(file) if file.is_file() else None


def _provenance(collected: Sequence[Collected]) -> str:
    entries = []
    for found in collected:
        source = found.benchmark.source
        place = f"{source.repository} at {source.revision}" if source.repository else "written by this project"
        scorers = {row.scorer: row.scorer_digest[:12] for row in found.rows}
        said = ", ".join(f"{name} {digest}" for name, digest in scorers.items())
        entries.append(tag("dt", text(found.benchmark.title)))
        entries.append(tag("dd", text(f"Prompts: {place}; {source.licence}. Scorers: {said or 'none yet'}.")))
    return tag("section", tag("h2", "Provenance"), tag("div", tag("dl", *entries), css="card"))
