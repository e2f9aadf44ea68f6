"""Commands for pairs and other bundles: import, rival, export, evaluate."""

from pathlib import Path

import click
from click.core import ParameterSource

from pipeline import artifacts
from pipeline.cli.edges import bundle_folder, in_root, name_of, one_sentence, refuse_inside, show
from pipeline.console import progress, set_threads


@click.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", default="imported", show_default=True, type=click.Path(path_type=Path), help="The bundle's folder."
)
@click.option(
    "--rule",
    default="official",
    show_default=True,
    help="The rule that chooses the steps, as in partition.rule; uniform alone is for any number of files.",
)
@click.option("--slow-steps", default=5, show_default=True, type=click.IntRange(min=1), help="Of the first of two.")
@click.option("--fast-steps", default=5, show_default=True, type=click.IntRange(min=1), help="Of the second of two.")
@click.option("--steps", help="The number of steps of each file, such as 2,2,2,2, for any number of files.")
@click.option("--levels", help="The base level of each step, such as 1.0,0.9,0.5, in place of --rule.")
@click.option(
    "--names", help="A name of a-z, 0-9 and _ for each file  [default: slow,fast for two, else expert_1,expert_2,...]"
)
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
    files: tuple[Path, ...],
    out: Path,
    rule: str,
    slow_steps: int,
    fast_steps: int,
    steps: str | None,
    levels: str | None,
    names: str | None,
    strength: float,
    path: str,
) -> None:
    """Make a bundle for params.yaml's teacher from LoRA files of any trainer: docs/lora_files.md lists the layouts.

    FILES, in the order of their steps, are .safetensors files, or folders that peft saved: two of them are a pair, slow
    and fast. Files that all carry a contract in their headers, as those of a bundle do, need no other option. One file
    of `glance export --format one-file` gives its own bundle again, whatever params.yaml says.
    """
    from pipeline import params
    from pipeline.bundle import carried, importing
    from pipeline.bundle.formats import one_file

    if out.exists():
        raise ValueError(f"--out must not be there yet, got {out}")
    refuse_inside("--out", out)
    if len(files) > 1 and (whole := next(filter(one_file.content_of, files), None)):
        raise ValueError(f"{whole} holds a whole bundle: import it alone")
    if len(files) == 1 and one_file.content_of(files[0]):
        _refuse_given(files[0], OF_LORAS)
        made = one_file.restore(files[0], out)
        click.echo(f"{made.folder}: {len(made.steps)} steps, rank {made.rank}")
        return
    given = [f"--{name.replace('_', '-')}" for name in OF_THE_PATH if _given(name)]
    found = None if given else carried.by(files)
    if found is not None:
        made = importing.rebuilt(found, params.load(), out, strength)
        click.echo(f"steps, levels and names are those of the contract that the {len(files)} files carry")
        click.echo(f"{made.folder}: {len(made.steps)} steps, rank {made.rank}")
        return
    if given and carried.carry(files):
        click.echo(f"the contract that the files carry is not used, because of {', '.join(given)}")
    phases = _names(names, len(files))
    counts = (slow_steps, fast_steps) if steps is None and len(files) == 2 else _counts(steps, len(files))
    made = importing.bundle(
        dict(zip(phases, files, strict=True)),
        params.load(),
        out,
        rule,
        dict(zip(phases, counts, strict=True)),
        strength,
        path,
        None if levels is None else _levels(levels),
    )
    click.echo(f"{made.folder}: {len(made.steps)} steps, rank {made.rank}")


OF_THE_PATH = ("rule", "slow_steps", "fast_steps", "steps", "levels", "names", "path")
"""The options of `import_pair` that take the place of a contract."""
OF_LORAS = (*OF_THE_PATH, "strength")
"""The options of `import_pair` for files that hold no whole bundle."""


def _given(option: str) -> bool:
    """Whether the user gave an option of the command that runs."""
    return click.get_current_context().get_parameter_source(option) is not ParameterSource.DEFAULT


def _refuse_given(file: Path, options: tuple[str, ...]) -> None:
    """Raises ValueError if the command line sets an option that a whole bundle in one file says itself."""
    for name in filter(_given, options):
        raise ValueError(f"--{name.replace('_', '-')} is for LoRA files, and {file} holds a whole bundle: leave it out")


def _names(given: str | None, count: int) -> tuple[str, ...]:
    """The names of the phases of `count` files; raises ValueError if they are not as many different ones."""
    if given is None:
        return ("slow", "fast") if count == 2 else tuple(f"expert_{i}" for i in range(1, count + 1))
    names = tuple(given.split(","))
    if len(set(names)) < len(names) or len(names) != count:
        raise ValueError(f"--names must hold a different name for each of the {count} files, got {given}")
    return names


def _counts(given: str | None, count: int) -> tuple[int, ...]:
    """The number of steps of each of `count` files; raises ValueError unless each is at least 1."""
    numbers = (given or "").split(",")
    if len(numbers) != count or not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise ValueError(f"--steps must hold a whole number of at least 1 for each of the {count} files, got {given}")
    return tuple(map(int, numbers))


def _levels(given: str) -> tuple[float, ...]:
    """The base levels; raises ValueError unless they are numbers."""
    try:
        return tuple(map(float, given.split(",")))
    except ValueError:
        raise ValueError(f"--levels must be numbers with commas between them, got {given}") from None


@click.command()
@click.argument("name")
@click.argument("out", type=click.Path(path_type=Path))
@one_sentence
@in_root
def rival(name: str, out: Path) -> None:
    """Write the trained rival NAME of the comparison as a bundle into the new folder OUT, whole or not at all.

    The stage train_controls has to have trained its adapters: train_controls.arms of params.yaml names it.
    """
    refuse_inside("OUT", out)

    from pipeline import params, shipping

    made = shipping.rival(name, params.load(), out)
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
@click.option("--width", type=int, help="Of the images, in pixels, for comfyui  [default: the bundle's]")
@click.option("--height", type=int, help="As --width.")
@click.option("--no-picture", is_flag=True, help="Draw no sample picture: for a base that is too big for this machine.")
@one_sentence
def export(
    out: Path, name: str, bundle: str, teacher: Path | None, width: int | None, height: int | None, no_picture: bool
) -> None:
    """Write a bundle for other tools into the new folder OUT, whole or not at all. The bundle is only read."""
    folder = bundle_folder(bundle)

    from pipeline.bundle import formats

    for file in formats.export(name, folder, out, base=teacher, height=height, width=width, picture=not no_picture):
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
    refuse_inside("--out", out)
    folder = bundle_folder(bundle)

    from pipeline import params
    from pipeline.evaluation import inputs, run

    loaded = params.load()
    set_threads(loaded.runtime.threads)
    source = inputs.of_bundle(loaded, folder)
    with artifacts.atomic_dir(out) as partial:
        run.evaluate(loaded, source, partial, progress)
    show(out / "report.html")
