"""Commands for pairs: import, export, evaluate."""

from pathlib import Path

import click

from pipeline import artifacts
from pipeline.cli.edges import bundle_folder, in_root, name_of, one_sentence, show
from pipeline.console import progress, set_threads


@click.command("import")
@click.argument("slow", type=click.Path(path_type=Path))
@click.argument("fast", type=click.Path(path_type=Path))
@click.option(
    "--out", default="imported", show_default=True, type=click.Path(path_type=Path), help="The bundle's folder."
)
@click.option(
    "--rule", default="official", show_default=True, help="The rule that chooses the steps, as in partition.rule."
)
@click.option("--slow-steps", default=5, show_default=True, type=click.IntRange(min=1))
@click.option("--fast-steps", default=5, show_default=True, type=click.IntRange(min=1))
@click.option("--strength", default=1.0, show_default=True, help="Factor on the adapters.")
@click.option(
    "--path",
    default="consistent",
    show_default=True,
    help="How the latents move: consistent, or official as in the released Glance code.",
)
@one_sentence
@in_root
def import_pair(
    slow: Path, fast: Path, out: Path, rule: str, slow_steps: int, fast_steps: int, strength: float, path: str
) -> None:
    """Make a bundle for params.yaml's teacher from two LoRA files of any trainer: docs/lora_files.md lists the layouts.

    SLOW and FAST are .safetensors files, or folders that peft saved.
    """
    from pipeline import params
    from pipeline.bundle import importing

    files, steps = {"slow": slow, "fast": fast}, {"slow": slow_steps, "fast": fast_steps}
    made = importing.bundle(files, params.load(), out, rule, steps, strength, path)
    click.echo(f"{made.folder}: {len(made.steps)} steps, rank {made.rank}")


class _WithFormats(click.Command):
    """A command whose help ends with the table of formats."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes a line per format."""
        from pipeline.bundle.formats import FORMATS

        with formatter.section("Formats"):
            formatter.write_dl([(one.name, one.description) for one in FORMATS.values()])


@click.command(cls=_WithFormats)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--format", "name", required=True, help="The format to write: a name from the table below.")
@click.option(
    "--bundle",
    default=artifacts.BUNDLE.as_posix(),
    show_default=True,
    help="A bundle's folder, models:/name@alias or models:/name/version.",
)
@click.option(
    "--teacher",
    type=click.Path(path_type=Path),
    help="The base model's folder  [default: the folder that the bundle names]",
)
@one_sentence
def export(out: Path, name: str, bundle: str, teacher: Path | None) -> None:
    """Write a bundle for other tools into the new folder OUT, whole or not at all. The bundle is only read."""
    folder = bundle_folder(bundle)

    from pipeline.bundle import formats

    for file in formats.export(name, folder, out, base=teacher):
        show(file)


@click.command()
@click.argument("bundle")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The folder to make  [default: evaluation-<the bundle's name>, here]"
)
@one_sentence
@in_root
def evaluate(bundle: str, out: Path | None) -> None:
    """Measure BUNDLE, a folder or a version, against params.yaml's teacher, as the DVC stages do for their pair."""
    out = out or Path(f"evaluation-{name_of(bundle)}")
    if out.exists():
        raise ValueError(f"--out must not be there yet, got {out}")
    folder = bundle_folder(bundle)

    from pipeline import params
    from pipeline.evaluation import inputs, run

    loaded = params.load()
    set_threads(loaded.runtime.threads)
    source = inputs.of_bundle(loaded, folder)
    with artifacts.atomic_dir(out) as partial:
        run.evaluate(loaded, source, partial, progress)
    show(out / "report.html")
