"""`glance`: generate with a bundle; import, export, evaluate, register, promote or pull one; run the ablations.

Torch and MLflow are imported by the commands that need them, so that `glance --help` answers at once.
"""

import functools
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import click
from tqdm import tqdm

from pipeline import artifacts, out_of_memory
from pipeline.console import progress, sentence, sentences, set_threads

LAST_SEED = 2**63 - 1  # torch takes twice as many, so that seed + i fits
ANYWHERE = ("generate", "assemble", "export", "pull", "clean", "doctor")
"""Commands that read no params.yaml, or, as the doctor, say what is wrong."""

OF_ROOT = ("params.yaml", "dvc.yaml")  # the files that show a project's root


def one_sentence(function: Callable[..., None]) -> Callable[..., None]:
    """Turns what went wrong into one sentence, or one for each fault of params.yaml, and exit code 1.

    Ctrl-C gives exit code 130, SIGTERM 143. In another checkout only the commands of ANYWHERE run: a checkout's
    params.yaml is meant for its own code, and what is measured and registered carries its revision.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            if function.__name__ not in ANYWHERE and (found := artifacts.other_checkout()):
                raise ValueError(f"{found}: run `python -m pipeline.cli` here instead of `glance`")
            with _stoppable():
                function(*args, **kwargs)
        except (ValueError, OSError) as error:
            said = "\nError: ".join(sentences(error, "the command"))
            raise click.ClickException(_noted(said, error)) from error
        except (RuntimeError, MemoryError) as error:
            if out_of_memory.out_of_memory(error):
                said = out_of_memory.sentence(error, out_of_memory.generating(kwargs, out_of_memory.on_gpu(error)))
            elif kwargs.get("compiled") and type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
                said = f"--compile needs a C++ compiler, and on a GPU Triton: {sentence(error)}"
            else:
                raise
            raise click.ClickException(_noted(said, error)) from error
        except KeyboardInterrupt as stop:
            click.echo(_noted("interrupted", stop), err=True)
            sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))

    return wrapped


@contextmanager
def _stoppable() -> Iterator[None]:
    """Lets SIGTERM end a command as Ctrl-C does, so that no half-written file stays; once, for the end is short."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _noted(said: str, error: BaseException) -> str:
    return artifacts.legible("; ".join([said, *getattr(error, "__notes__", [])]))


def _show(path: str | Path) -> None:
    """Prints a path with the bytes that it has on the disk, whatever the locale, and above the progress bar if any."""
    terminal = sys.stdout.isatty() and sys.stderr.isatty()
    with tqdm.external_write_mode() if terminal else nullcontext():
        click.echo(os.fsencode(path))


def in_root(function: Callable[..., None]) -> Callable[..., None]:
    """Makes a command that reads params.yaml, artifacts/ or the registry refuse to run below the project's root."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        _refuse_below_root()
        function(*args, **kwargs)

    return wrapped


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="glance-pipeline")
def main() -> None:
    """Slow-fast adapters for flow-matching text-to-image models."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a letter that the terminal lacks is no failure


@main.command()
@click.argument("prompts", nargs=-1)
@click.option("--prompts-file", type=click.Path(path_type=Path), help="A text file in UTF-8, one prompt a line.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0, LAST_SEED), help="Image i starts from seed + i."
)
@click.option(
    "--bundle",
    default=artifacts.BUNDLE.as_posix(),
    show_default=True,
    help="A bundle's folder, models:/name@alias or models:/name/version.",
)
@click.option("--teacher", help="The base model's folder  [default: the one that the bundle names]")
@click.option(
    "--out",
    default="images",
    show_default=True,
    type=click.Path(path_type=Path),
    help="A folder for one PNG per prompt, or a .png file: one image, or a grid of several.",
)
@click.option("--grid", is_flag=True, help="Write a grid beside the images in the folder too.")
@click.option(
    "--resume",
    is_flag=True,
    help="Keep the images in the folder that were made of the same prompt, seed, bundle, base model and quantization, "
    "as their PNG text says, and make the others.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--batch", default=8, show_default=True, type=click.IntRange(min=1), help="Images in one forward.")
@click.option("--offload", is_flag=True, help="One part of the model on the GPU at a time: less memory, seconds more.")
@click.option(
    "--quantization",
    default="none",
    show_default=True,
    type=click.Choice(["none", "int8", "fp8", "nf4"]),
    help="Of the transformer's weights.",
)
@click.option("--compile", "compiled", is_flag=True, help="Compile the transformer's blocks first: for many images.")
@one_sentence
def generate(
    prompts: tuple[str, ...],
    prompts_file: Path | None,
    seed: int,
    bundle: str,
    teacher: str | None,
    out: Path,
    grid: bool,
    resume: bool,
    device: str,
    batch: int,
    offload: bool,
    quantization: str,
    compiled: bool,
) -> None:
    """Generate an image per PROMPT with the base model and a slow-fast bundle.

    In a folder, each image is written as soon as its batch is made, and says in its PNG text what it was made of.
    """
    texts = _prompts(prompts, prompts_file)
    _check_out(out, resume)
    folder = _bundle(bundle)

    from pipeline import backbones, image_files
    from pipeline.bundle import generating
    from pipeline.bundle.manifest import Bundle

    loaded = Bundle.load(folder)
    one_file = out.suffix == ".png"
    tiles = image_files.Grid(len(texts), loaded.height, loaded.width) if one_file or grid else None
    loaded.check_base(teacher)
    origin = generating.Origin.of(loaded, quantization)
    files = [] if one_file else [out / name for name in image_files.names(texts)]
    kept = generating.finished(origin, texts, seed, files) if resume else set()
    made: set[int] = set()
    saving: int | None = None  # a stop can come between the last byte of a file and the note that it is there
    try:
        if len(kept) < len(texts):
            backbone = backbones.load(loaded.base(teacher, quantization), device, offload=offload)
            if compiled:
                backbone.compile()
            with progress(total=len(texts) - len(kept), what="generating", unit="image") as bar:
                for number, image in generating.images(backbone, loaded, texts, seed, batch, skip=kept):
                    if tiles:
                        tiles.place(number, image)
                    if files:
                        saving = number
                        image_files.save(image, files[number], origin.texts(texts[number], seed + number))
                        made.add(number)
                        _show(files[number])
                    bar.update()
    except BaseException as error:
        if saving is not None and generating.finished(origin, [texts[saving]], seed + saving, [files[saving]]):
            made.add(saving)
        there = len(kept) + len(made)
        if one_file and isinstance(error, KeyboardInterrupt):
            error.add_note(f"{out} is not written")
        elif there or isinstance(error, KeyboardInterrupt):
            error.add_note(f"{there} of {len(texts)} images are in {out}, and --resume goes on from there")
        raise
    if tiles:
        for number in kept:
            tiles.place(number, image_files.read(files[number]))
        path = out if one_file else out / image_files.GRID
        image_files.save(tiles.image, path, origin.texts(texts[0], seed) if one_file and len(texts) == 1 else None)
        _show(path)
    if resume:
        click.echo(f"{len(kept)} images kept, {len(made)} made", err=True)


@main.command()
@click.argument("name")
@one_sentence
@in_root
def preset(name: str) -> None:
    """Rewrite params.yaml for the teacher of preset NAME: tiny, flux-dev or qwen-image; comments and the rest stay."""
    from pipeline import params, presets

    changes = presets.apply(name)
    for key, before, after in changes:
        click.echo(f"{key}: {before!r} -> {after!r}")
    click.echo(f"{len(changes)} values changed" if changes else f"params.yaml has the values of {name} already")
    teacher = params.load().teacher
    if teacher.hub and not Path(teacher.path).is_dir():
        click.echo(f"next: `glance fetch` downloads {teacher.hub} to {teacher.path}")


@main.command()
@one_sentence
@in_root
def fetch() -> None:
    """Download the teacher and the LoRAs that params.yaml names, at their pinned revisions."""
    from pipeline import params, styles
    from pipeline.backbones import hub

    teacher = params.load().teacher
    wanted = [lora for lora in styles.missing(teacher.loras) if lora.hub]
    if not (wanted and Path(teacher.path).is_dir()):
        if teacher.hub is None:
            raise ValueError("teacher.hub must name owner/name@revision to fetch it, got null")
        _show(hub.fetch(teacher.hub, teacher.path))
    for lora in wanted:
        _show(hub.fetch_lora(lora))


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--base", required=True, type=click.Path(path_type=Path), help="A diffusers folder of the same family.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to make.")
@one_sentence
def assemble(checkpoint: Path, base: Path, out: Path) -> None:
    """Make a teacher's folder of CHECKPOINT, a transformer in one .safetensors file, and the base's other parts."""
    from pipeline.backbones import assembling

    _show(assembling.assemble(checkpoint, base, out))


@main.command()
@click.argument("reference")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The folder to make  [default: named after the reference, here]"
)
@one_sentence
@in_root
def pull(reference: str, out: Path | None) -> None:
    """Download REFERENCE, a version named models:/name@alias or models:/name/version, and check its bytes."""
    from pipeline.registry import pulling, references

    references.parse(reference)
    _show(pulling.pull(reference, out or Path(_name(reference))))


@main.command("import")
@click.argument("slow", type=click.Path(path_type=Path))
@click.argument("fast", type=click.Path(path_type=Path))
@click.option(
    "--out", default="imported", show_default=True, type=click.Path(path_type=Path), help="The bundle's folder."
)
@click.option("--rule", default="official", show_default=True, help="Which steps the phases take, as partition.rule.")
@click.option("--slow-steps", default=5, show_default=True, type=click.IntRange(min=1))
@click.option("--fast-steps", default=5, show_default=True, type=click.IntRange(min=1))
@click.option("--strength", default=1.0, show_default=True, help="What the adapters are multiplied with.")
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


@main.command(cls=_WithFormats)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--format", "name", required=True, help="What to write: a name of the table below.")
@click.option(
    "--bundle",
    default=artifacts.BUNDLE.as_posix(),
    show_default=True,
    help="A bundle's folder, models:/name@alias or models:/name/version.",
)
@click.option(
    "--teacher",
    type=click.Path(path_type=Path),
    help="The base model's folder  [default: the one that the bundle names]",
)
@one_sentence
def export(out: Path, name: str, bundle: str, teacher: Path | None) -> None:
    """Write a bundle for other tools into OUT, a folder to make: whole or not at all. The bundle is only read."""
    folder = _bundle(bundle)

    from pipeline.bundle import formats

    for file in formats.export(name, folder, out, base=teacher):
        _show(file)


@main.command()
@click.argument("bundle")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The folder to make  [default: evaluation-<the bundle's name>, here]"
)
@one_sentence
@in_root
def evaluate(bundle: str, out: Path | None) -> None:
    """Measure BUNDLE, a folder or a version, against params.yaml's teacher: what the stage does, for any pair."""
    out = out or Path(f"evaluation-{_name(bundle)}")
    if out.exists():
        raise ValueError(f"--out must not be there yet, got {out}")
    folder = _bundle(bundle)

    from pipeline import params
    from pipeline.evaluation import inputs, run

    loaded = params.load()
    set_threads(loaded.runtime.threads)
    source = inputs.of_bundle(loaded, folder)
    with artifacts.atomic_dir(out) as partial:
        run.evaluate(loaded, source, partial, progress)
    _show(out / "report.html")


@main.command()
@click.option("--bundle", default=artifacts.BUNDLE, show_default=True, type=click.Path(path_type=Path))
@click.option(
    "--evaluation",
    default=artifacts.EVALUATION,
    show_default=True,
    type=click.Path(path_type=Path),
    help="What `glance evaluate` or `dvc repro` measured of the bundle.",
)
@one_sentence
@in_root
def register(bundle: Path, evaluation: Path) -> None:
    """Publish the last `dvc repro` and register its bundle as `candidate`; the same bytes make no second version.

    With --bundle another pair is registered, on the strength of its own evaluation.
    """
    from pipeline import params
    from pipeline.registry import registering

    done = registering.register(params.load(), bundle, evaluation)
    click.echo(f"{done.version}{'' if done.created else ' has these bytes already'} (run {done.run_id})")


@main.command()
@click.argument("reference", required=False)
@click.option("--force", is_flag=True, help="Promote it whatever its retention is.")
@one_sentence
@in_root
def promote(reference: str | None, force: bool) -> None:
    """Make a version the `champion`.

    REFERENCE is models:/name@alias, models:/name/version or a version number; without it the candidate is meant. It is
    refused below register.min_retention of params.yaml.
    """
    from pipeline import params
    from pipeline.registry import promoting, references

    version = promoting.promote(params.load(), reference, force=force)
    retention = version.tags.get("retention")
    measured = "retention unmeasured" if retention is None else f"retention {100 * float(retention):.1f} %"
    click.echo(f"{version} is {references.CHAMPION} ({measured})")


@main.command()
@click.option("--fix", is_flag=True, help="First remove what a DVC that was killed left unusable, .dvc/tmp/rwlock.")
@one_sentence
@in_root
def doctor(fix: bool) -> None:
    """Check git, DVC, packages, the teacher and the registry; say what is wrong and how to fix it."""
    from pipeline import diagnosis, rwlock

    if fix and (found := rwlock.repair(Path.cwd())):
        click.echo(f"removed {rwlock.TMP / 'rwlock'}: {found}")
    wrong = 0
    for name, finding in diagnosis.run():
        wrong += not finding.ok
        click.echo(f"{'ok  ' if finding.ok else 'FAIL'} {name}: {finding.text}")
        if finding.fix:
            click.echo(f"     fix: {finding.fix}")
    if wrong:
        raise click.ClickException(f"{wrong} of {len(diagnosis.CHECKS)} checks failed")


@main.command()
@click.option("--all", "everything", is_flag=True, help="Also what stopped stages, pulls by name and downloads left.")
@one_sentence
@in_root
def clean(everything: bool) -> None:
    """Empty .glance/cache: images of the bare model, which the next evaluation makes anew.

    With --all also .glance/checkpoints: stages that were stopped begin anew, which can cost hours. And .glance/bundles:
    versions that a command named as models:/... are pulled anew. And .glance/downloads: downloads that were stopped
    begin anew. The registry stays.
    """
    from pipeline import leftovers, rwlock

    if everything and (busy := rwlock.running(artifacts.dvc_root())):
        raise ValueError(f"--all would take the checkpoints of what DVC runs ({busy}): wait for its end or stop it")
    for name in leftovers.FOLDERS if everything else ("cache",):
        freed = leftovers.clean(name)
        click.echo(f"{freed.folder}: {freed.files} files, {freed.bytes / leftovers.GB:.3f} GB freed")


@main.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="How many runs go at once.")
@click.option("--force", is_flag=True, help="Run what is there too, every stage anew.")
@click.option("--dry-run", is_flag=True, help="Only print the commands of DVC.")
@one_sentence
@in_root
def ablate(names: tuple[str, ...], jobs: int, force: bool, dry_run: bool) -> None:
    """Run the experiments of experiments/NAME.yaml that are not there yet, and renew docs/ablations.md."""
    from pipeline import ablations

    failed = ablations.ablate(names, jobs, force, dry_run, click.echo)
    if failed:
        raise click.ClickException(f"{len(failed)} runs failed: {', '.join(failed)}")


@main.command()
@one_sentence
@in_root
def ablations() -> None:
    """Renew docs/ablations.md from the experiments that are here and the tables in experiments/results/."""
    from pipeline import ablations

    ablations.renew(click.echo)


def _refuse_below_root() -> None:
    here = Path.cwd()
    roots = [folder for folder in (here, *here.parents) if all((folder / name).is_file() for name in OF_ROOT)]
    if roots and roots[0] != here:
        raise ValueError(f"{here} is a folder below the project's root: run this in {roots[0]}")


def _prompts(prompts: tuple[str, ...], prompts_file: Path | None) -> list[str]:
    from pipeline.prompts import argument, clean, read

    texts = [text for text in map(clean, map(argument, prompts)) if text]
    if prompts_file is not None:
        texts += read(prompts_file, "--prompts-file")
    if not texts:
        raise ValueError("generate needs at least one prompt, as an argument or in --prompts-file")
    return texts


def _check_out(out: Path, resume: bool) -> None:
    """Refuses an --out at which nothing can be written, before the model is loaded."""
    one_file = out.suffix == ".png"
    if out.suffix and not one_file:
        raise ValueError(f"--out must be a folder or a .png file, got {out}")
    if out.is_dir() if one_file else out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder or a .png file, got {out}, a {'folder' if one_file else 'file'}")
    if resume and one_file:
        raise ValueError(f"--resume needs a folder as --out, got {out}")


def _name(bundle: str) -> str:
    """A folder's own name, or a version's reference as one."""
    return (
        re.sub(r"[/@]", "-", bundle.removeprefix("models:/"))
        if bundle.startswith("models:")
        else Path(bundle).resolve().name
    )


def _bundle(bundle: str) -> Path:
    """The bundle's folder; a version of the registry is pulled into a cache that its digest keys."""
    if bundle.startswith("models:") or not Path(bundle).exists():
        _refuse_below_root()
    if not bundle.startswith("models:"):
        return Path(bundle)

    from pipeline.registry import pulling

    return pulling.pull(bundle)


if __name__ == "__main__":
    main()
