"""Beside its rivals: what the training of each method costs, and what each method reaches.

    python -m measurements.rivals                # measures the costs, a minute or two; then writes the page
    python -m measurements.rivals --page         # writes the page alone

The costs go to docs/measured/rivals.json. docs/rivals.md is made from that file and from the results of the questions
in `QUESTIONS`, which `glance ablate` measures.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING

import click
from torch import Tensor, nn

from measurements.gpu import DOCS, ROOT
from pipeline import artifacts, partition
from pipeline.ablations import grid, results
from pipeline.ablations.grid import Grid, Run
from pipeline.ablations.results import METRICS, Result
from pipeline.backbones.base import Backbone
from pipeline.evaluation.recipes import BASES, FREE, PRODUCT, REFERENCE, titles
from pipeline.params import Params, load
from pipeline.recording.trajectories import Trajectories
from pipeline.training import jobs, loop, rivals
from pipeline.training.costs import BACKWARD
from pipeline.training.data import TrainingData
from pipeline.training.jobs import Job
from pipeline.training.trainers import TRAINERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUESTIONS = ("rivals", "lcm", "experts", "solver")
KEPT = {
    "Euler": ", guidance kept",
    "Adams-Bashforth 2": ", guidance kept, AB2",
    "Adams-Bashforth 2 and 640 train steps": ", guidance kept, AB2, 640 train steps",
}
"""What a variant of the question `solver` adds to the student's title."""
FILE, PAGE, PLOT = DOCS / "rivals.json", ROOT / "docs" / "rivals.md", ROOT / "docs" / "rivals.png"
LINE = 0.021  # of the height of a panel: between two labels
TIMED_STEPS = 3  # after one that is not timed
COLUMNS = ("score", "retention", "psnr", "fd_scenes", "diversity")
FREE_ARMS = {recipe.name for recipe in (*BASES, *FREE)}


@dataclass(frozen=True)
class Cost:
    """What the training of a method costs."""

    forwards: float
    """Forward equivalents: rows through the transformer, one with a gradient three times."""
    seconds: float


@contextmanager
def counted(transformer: nn.Module) -> Iterator[list[int]]:
    """Collects the forward equivalents of each call of a transformer."""
    found: list[int] = []

    def count(module: nn.Module, args: tuple, kwargs: dict, output: tuple[Tensor, ...]) -> None:
        (v, *_) = output
        found.append(len(v) * (1 + BACKWARD * v.requires_grad))

    handle = transformer.register_forward_hook(count, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def cost(backbone: Backbone, data: TrainingData, job: Job) -> Cost:
    """The cost of a whole training, from the mean of a few of its steps."""
    trainer = TRAINERS[job.trainer](backbone, data.trajectories, job, data.anchors)
    seconds, steps = [], min(TIMED_STEPS, job.settings.train_steps - 1)
    with counted(backbone.transformer) as calls:
        trainer.step(0)
        calls.clear()
        for train_step in range(1, steps + 1):
            start = time.perf_counter()
            trainer.step(train_step)
            seconds.append(time.perf_counter() - start)
    backbone.transformer.unload_lora()
    steps_of_job = job.settings.train_steps
    return Cost(sum(calls) / steps * steps_of_job, median(seconds) * steps_of_job)


def params_of(run: Run) -> Params:
    """The parameters of a run: params.yaml with the run's overrides, which the grid has checked."""
    params = load()
    for key, value in run.overrides.items():
        section, name = key.split(".")
        changed = {name: tuple(value) if isinstance(value, list) else value}
        params = replace(params, **{section: replace(getattr(params, section), **changed)})
    return params


def measure(questions: Sequence[Grid]) -> dict[str, dict[str, dict[str, float]]]:
    """{variant: {arm: {"forwards", "seconds"}}} of every trained arm of the questions; the pair is the student."""
    recorded, found = Trajectories(artifacts.TRAJECTORIES), {}
    backbone = loop.load_teacher(load())
    for run in (run for question in questions for run in question.runs if run.seed == question.seeds[0]):
        params = params_of(run)
        data = TrainingData(partition.compute(params, recorded.schedule), recorded, None)
        chosen = rivals.chosen(params.train_controls.arms)
        work = {PRODUCT: [jobs.of_phase(params, data, phase) for phase in partition.PHASES]}
        work |= {name: rival.jobs(params, data) for name, rival in chosen.items()}
        costs = {name: [cost(backbone, data, job) for job in those] for name, those in work.items()}
        here = found.setdefault(run.variant, {})
        for name, those in costs.items():
            here[name] = {
                "forwards": sum(one.forwards for one in those),
                "seconds": sum(one.seconds for one in those),
            }
    return found


@dataclass(frozen=True)
class Row:
    """A method at one number of forwards, under one or more training seeds."""

    arm: str
    variant: str
    nfe: int
    cost: Cost | None
    seeds: Mapping[int | None, Mapping[str, float | None]]
    """The metrics of each training seed."""

    @property
    def title(self) -> str:
        """The method in words."""
        if self.free:
            return titles()[self.arm.removesuffix("_equal_cost")]
        suffix = KEPT.get(self.variant, "")
        return titles()[self.arm] + (suffix if self.arm == PRODUCT else "")

    @property
    def free(self) -> bool:
        """Whether the row needs no training, so that no seed changes it."""
        return self.arm in FREE_ARMS

    def mean(self, name: str, seeds: Iterable[int | None] | None = None) -> float:
        """The mean of a metric over these seeds, or over all; not a number where it is not measured."""
        chosen = self.seeds if self.free or seeds is None else seeds
        values = [self.seeds[seed][name] for seed in chosen]
        return mean(value if value is not None else math.nan for value in values)

    def range(self, name: str) -> tuple[float, float]:
        """The smallest and the largest value of a metric."""
        values = [value if (value := one[name]) is not None else math.nan for one in self.seeds.values()]
        return min(values), max(values)


def rows(measured: Sequence[tuple[Grid, Sequence[Result]]], costs: Mapping) -> list[Row]:
    """The rows of the table, by forwards: the arms that the questions show, each once with all of its seeds.

    Free arms that make the same images are one row.
    """
    found: dict[tuple, Row] = {}
    for question, those in measured:
        for one in (one for one in those if one.arm in (REFERENCE, *question.arms)):
            nfe = int(one.metrics["nfe"] or 0)
            spent = costs.get(one.variant, {}).get(one.arm)
            new = Row(one.arm, one.variant, nfe, Cost(**spent) if spent else None, {one.seed: one.metrics})
            kept = one.variant if question.name == "solver" else ""
            same = [f"{one.metrics[name] or 0:.2g}" for name in ("score", "psnr")]  # rounding differs among machines
            key = (nfe, *same) if new.free else (nfe, one.arm, kept)
            old = found.get(key, new)
            found[key] = old if old.free else replace(old, seeds=dict(new.seeds) | dict(old.seeds))
    return sorted(found.values(), key=lambda row: (-row.nfe, not row.free, row.title))


def front(table: Sequence[Row]) -> list[Row]:
    """The rows that no other row beats in forwards, score, `fd_scenes` and diversity together.

    A row beats another if it is as good in each of them in the mean, and better in one of them under every training
    seed that both have. So what only some seeds show beats nothing.
    """

    def beaten(row: Row, other: Row) -> bool:
        trained = [set(one.seeds) for one in (row, other) if not one.free] or [set(row.seeds)]
        both = set.intersection(*trained)
        if not both:
            return False
        pairs = [_goals(one, both) for one in (row, other)]
        by_seed = [tuple(zip(*(_goals(one, {seed}) for seed in both), strict=True)) for one in (row, other)]
        no_worse = all(theirs <= mine for mine, theirs in zip(*pairs, strict=True))
        return no_worse and any(
            all(b < a for a, b in zip(mine, theirs, strict=True)) for mine, theirs in zip(*by_seed, strict=True)
        )

    return [row for row in table if not any(beaten(row, other) for other in table if other.arm != REFERENCE)]


def _goals(row: Row, seeds: set[int | None]) -> tuple[float, ...]:
    """What is to be small."""
    diversity = row.mean("diversity", seeds)
    return row.nfe, -row.mean("score", seeds), row.mean("fd_scenes", seeds), max(0.0, 1 - diversity)


def page(questions: Sequence[Grid], table: Sequence[Row]) -> str:
    """docs/rivals.md."""
    best = front(table)
    lines = [
        "# Beside its rivals",
        "",
        "Generated by `python -m measurements.rivals` from docs/measured/rivals.json and the results of "
        + ", ".join(f"`experiments/{question.name}.yaml`" for question in questions)
        + ". Only the answers are typed.",
        "",
        "All trained methods have the same rank, targets, recorded prompts and budget in forward equivalents (a forward"
        " counts 1, a backward 2). Rows show means over training seeds, with the smallest and the largest in brackets."
        " Seconds are those of two CPU cores with other load, so only large differences count."
        " The score is the share of held-out captions that the checker accepts;"
        " retention is the score over the teacher's. PSNR and `fd_scenes` compare with the teacher's images of the same"
        " captions and noise. Diversity is the spread over seeds over the teacher's spread. A row in bold is on the"
        " Pareto front of forwards, score, `fd_scenes` and diversity (above 1 counts as 1): no other row is as good in"
        " each of them in the mean, and better in one of them under every shared training seed."
        " [Method](method.md#controls) has the formulas.",
        "",
        "| method | forwards | training: forward equivalents | s | score | retention | PSNR, dB | `fd_scenes` |"
        " diversity | seeds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in table:
        mark = "**" if row in best and row.arm != REFERENCE else ""
        spent = [f"{row.cost.forwards:,.0f}", f"{row.cost.seconds:.0f}"] if row.cost else ["0", "0"]
        cells = [f"{mark}{row.title}{mark}", str(row.nfe), *spent, *(_cell(row, name) for name in COLUMNS)]
        lines.append(f"| {' | '.join([*cells, '-' if row.free else str(len(row.seeds))])} |")
    lines += ["", f"![Quality over forwards of every method]({PLOT.name})", ""]
    for nfe in sorted({row.nfe for row in table if row.arm == PRODUCT}, reverse=True):
        there = [row.title for row in best if row.nfe == nfe]
        product = any(row.arm == PRODUCT for row in best if row.nfe == nfe)
        stands = "is" if product else "is not"
        lines.append(
            f"- At {nfe} forwards the student {stands} on the front, which has {', '.join(there) or 'no row'}."
        )
    for question in questions:
        lines += ["", f"## {question.question}", ""]
        if question.paper:
            lines += [f"The paper: {question.paper}", ""]
        lines.append(f"**Here:** {question.answer}" if question.answer else "Not answered yet.")
    return "\n".join(lines) + "\n"


def _cell(row: Row, name: str) -> str:
    column = METRICS[name]
    middle, low, high = (column.number(value) for value in (row.mean(name), *row.range(name)))
    if "nan" in middle:
        return "-"
    unit = " %" if column.unit == "%" else ""
    return f"{middle}{unit}" + (f" [{low}, {high}]" if low != high else "")


def draw(table: Sequence[Row], path: Path) -> None:
    """Two panels over forwards: PSNR and `fd_scenes`; the front's rows are filled."""
    from matplotlib.figure import Figure

    best = front(table)
    figure = Figure(figsize=(14, 6), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("psnr", "fd_scenes"), strict=True):
        shown = [row for row in table if row.arm != REFERENCE]
        for row in shown:
            colour = "#0b7a5c" if row.arm == PRODUCT else "#b4540a" if row.free else "#6a5fa8"
            axes.plot(row.nfe, row.mean(name), "o", color=colour, fillstyle="full" if row in best else "none")
        axes.set(xscale="log", xlim=(1.7, 64), xlabel="forwards per image", ylabel=METRICS[name].label)
        axes.set_xticks([2, 4, 8, 16], ["2", "4", "8", "16"])
        axes.minorticks_off()
        if name == "fd_scenes":
            axes.set_yscale("log")
        for nfe in {row.nfe for row in shown}:
            _label(axes, {row.title: row.mean(name) for row in shown if row.nfe == nfe}, nfe)
    handles = [
        figure.axes[0].plot([], [], "o", color=colour, label=label)[0]
        for colour, label in (("#0b7a5c", "student"), ("#6a5fa8", "trained rival"), ("#b4540a", "free"))
    ]
    figure.axes[0].legend(handles=handles, frameon=False, title="filled: on the Pareto front")
    with artifacts.atomic_file(path) as partial:
        figure.savefig(partial, format="png", dpi=110, metadata={"Software": None})


def _label(axes: Axes, values: Mapping[str, float], x: float) -> None:
    """Writes titles beside their marks, from below, no two on one line."""
    to_axes, lowest = axes.transScale + axes.transLimits, -1.0
    for title, value in sorted(values.items(), key=lambda item: item[1]):
        across, up = to_axes.transform((x, value))
        lowest = max(up - 0.008, lowest + LINE)
        axes.text(across + 0.015, lowest, title, transform=axes.transAxes, fontsize=6)


@click.command()
@click.option("--page", "page_alone", is_flag=True, help="Write the page alone.")
def main(page_alone: bool) -> None:
    """Measures what each method's training costs, and writes docs/rivals.md."""
    defaults = load()
    questions = [grid.load(name, defaults) for name in QUESTIONS]
    if not page_alone:
        artifacts.write_json(FILE, measure(questions))
    table = rows([(question, results.read(question.name)) for question in questions], json.loads(FILE.read_text()))
    draw(table, PLOT)
    with artifacts.atomic_file(PAGE) as partial:
        partial.write_text(page(questions, table), encoding="utf-8")
    click.echo(str(PAGE))


if __name__ == "__main__":
    main()
