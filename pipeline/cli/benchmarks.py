"""`glance benchmark`: the official benchmarks, from the prompts to one table."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline.cli.edges import in_root, one_sentence, show
from pipeline.console import progress, set_threads

Command = Callable[..., None]


@click.group()
def benchmark() -> None:
    """Measure pairs by the official benchmarks: list, prepare, generate, score, collect.

    benchmarks/params.yaml says which arms are compared and where the scorers' weights are.
    """


def _arms(function: Command) -> Command:
    """Adds the options for the arms and for a subset of the prompts."""
    options = (
        click.option("--arms", help="Names with commas between them  [default: those of benchmarks/params.yaml]"),
        click.option(
            "--limit",
            type=click.IntRange(min=1),
            help="Only the first prompts of each category  [default: that of benchmarks/params.yaml]",
        ),
    )
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), function)


@benchmark.command("list")
@one_sentence
@in_root
def list_benchmarks() -> None:
    """Show the prompts, images, scorers and licence of every benchmark, and which of its files are here."""
    from pipeline.benchmarking import manifest, places
    from pipeline.evaluation.benchmarks.table import BENCHMARKS

    for name, found in BENCHMARKS.items():
        prompts = sum(found.counts.values())
        arms = manifest.arms(name)
        state = f"images of {', '.join(arms)}" if arms else "prepared" if places.data(name).is_dir() else "not prepared"
        click.echo(f"{name}: {found.title}, {prompts} prompts x {found.seeds} images ({state})")
        click.echo(f"    {found.about}")
        inside, outside = ", ".join(found.in_process), ", ".join(own.name for own in found.external)
        click.echo(f"    scorers: {inside or 'none'} here; {outside or 'none'} in an environment of its own")
        click.echo(f"    licence of the prompts: {found.source.licence}")


@benchmark.command("prepare")
@click.argument("name")
@click.option(
    "--from", "given", type=click.Path(path_type=Path), help="A file of the source, or the folder that holds its files."
)
@one_sentence
@in_root
def prepare_prompts(name: str, given: Path | None) -> None:
    """Get the prompts of benchmark NAME, check their number and bytes, and print their licence.

    Prompts whose licence allows it come with the project. The others are downloaded at the pinned revision.
    """
    from pipeline.benchmarking import places
    from pipeline.benchmarking import prepare as preparing
    from pipeline.evaluation.benchmarks.table import find

    found = preparing.prepare(name, given)
    click.echo(f"{len(found)} prompts of {find(name).title}: {find(name).source.licence}", err=True)
    show(places.data(name))


@benchmark.command("generate")
@click.argument("name")
@_arms
@click.option(
    "--shard", default="1/1", show_default=True, help="i/n makes part i of n, to share the work between machines."
)
@one_sentence
@in_root
def generate_images(name: str, arms: str | None, limit: int | None, shard: str) -> None:
    """Make the images of benchmark NAME, each arm from the same noise; a stopped run continues where it stopped."""
    from pipeline import params
    from pipeline.benchmarking import arms as every
    from pipeline.benchmarking import generate as making
    from pipeline.benchmarking import places
    from pipeline.evaluation.benchmarks.table import find

    found, settings = find(name), _settings(limit)
    part = making.Part.parse(shard)
    own = params.load()
    set_threads(own.runtime.threads)
    wanted = _names(arms) or settings.arms
    chosen = every.find(wanted, own, settings)
    for arm, made in zip(chosen, making.generate_all(found, chosen, settings, progress, part), strict=True):
        if made is None:
            click.echo(f"{arm.name}: the images of part {shard} are done; other parts are missing", err=True)
        else:
            show(places.manifest(name, arm.name))


@benchmark.command("score")
@click.argument("name")
@click.option("--arms", help="Names with commas between them  [default: all that have images]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@one_sentence
@in_root
def score_images(name: str, arms: str | None, device: str) -> None:
    """Score the images of benchmark NAME: in-process scorers first, then the official ones that are set up.

    For an official scorer that is not set up in benchmarks/params.yaml, this command writes the scorer's files and a
    script. Run the script in the scorer's own environment, then run this command again.
    """
    from pipeline.benchmarking import external, manifest
    from pipeline.benchmarking import score as scoring
    from pipeline.evaluation.benchmarks.table import find

    found, settings = find(name), _settings(None)
    wanted = _names(arms) or manifest.arms(name)
    if not wanted:
        raise ValueError(f"{name} has no images: run `glance benchmark generate {name}`")
    unscored = scoring.score(found, wanted, settings, device, progress)
    for sentence in unscored:
        click.echo(f"waits: {sentence}", err=True)
    for waiting in external.score(found, wanted, settings):
        unset, arms_shown = ", ".join(waiting.missing), ", ".join(waiting.arms)
        click.echo(
            f"waits: {waiting.scorer} for {arms_shown}; set {unset}, or run this script in its environment:"
            f" {waiting.script}",
            err=True,
        )


@benchmark.command("collect")
@click.argument("names", nargs=-1)
@click.option("--record", is_flag=True, help="Record a run in MLflow, and tag the registered version of the pair.")
@one_sentence
@in_root
def collect_scores(names: tuple[str, ...], record: bool) -> None:
    """Compare all arms of the benchmarks NAMES with the teacher in one table and one page.

    Without NAMES, compare the benchmarks of benchmarks/params.yaml.
    """
    from pipeline import params
    from pipeline.benchmarking import collect as collecting
    from pipeline.benchmarking import page, places

    settings, own = _settings(None), params.load()
    model = f"{own.teacher.hub or ''} {own.teacher.path}"
    found = collecting.collect(names or settings.benchmarks, settings, model)
    page.write(found, settings.sides)
    collecting.write(found)
    for name in ("table.csv", "metrics.json", "report.html"):
        show(places.RESULTS / name)
    if record:
        from pipeline.registry import benchmarks

        for line in benchmarks.record(own, places.RESULTS):
            click.echo(line)


@benchmark.command("export")
@click.argument("name")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--arm", default="student", show_default=True)
@click.option("--format", "kind", default="evalscope", show_default=True, type=click.Choice(["evalscope"]))
@one_sentence
@in_root
def export_images(name: str, out: Path, arm: str, kind: str) -> None:
    """Write a list of the images of benchmark NAME to OUT, so that another tool can score the images."""
    from pipeline.benchmarking import evalscope
    from pipeline.evaluation.benchmarks.table import find

    count = evalscope.write(find(name), arm, out)
    click.echo(f"{count} images", err=True)
    show(out)


def _settings(limit: int | None) -> Any:
    from dataclasses import replace

    from pipeline.benchmarking import settings

    loaded = settings.load()
    return loaded if limit is None else replace(loaded, limit=limit)


def _names(arms: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (arms or "").split(",") if name.strip())
