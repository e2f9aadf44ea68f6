"""`glance generate`: images with a pair."""

from collections.abc import Sequence
from pathlib import Path

import click

from pipeline import artifacts
from pipeline.cli.edges import bundle_folder, one_sentence, refuse_inside, show
from pipeline.console import progress

STRENGTH = 0.6  # of --image, the default of the stock pipelines
LAST_SEED = 2**63 - 1  # torch takes twice as many seeds, so seed + i fits


@click.command()
@click.argument("prompts", nargs=-1)
@click.option("--prompts-file", type=click.Path(path_type=Path), help="A text file in UTF-8, one prompt per line.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0, LAST_SEED), help="Image i starts from seed + i."
)
@click.option(
    "--bundle",
    default=artifacts.BUNDLE.as_posix(),
    show_default=True,
    help="A bundle's folder, models:/name@alias or models:/name/version.",
)
@click.option("--teacher", help="The base model's folder  [default: the folder that the bundle names]")
@click.option(
    "--out",
    default="images",
    show_default=True,
    type=click.Path(path_type=Path),
    help="A folder for one PNG per prompt, or a .png file for one image or a grid.",
)
@click.option("--grid", is_flag=True, help="Also write a grid of the images into the folder.")
@click.option(
    "--resume",
    is_flag=True,
    help="Keep images in the folder whose PNG text has the same prompt, seed, bundle, base model, quantization, "
    "strength, image and mask; make the others.",
)
@click.option(
    "--image",
    type=click.Path(path_type=Path),
    help="A picture to start from instead of noise. It is resized until it covers the bundle's size, and its middle is "
    "cut out.",
)
@click.option(
    "--strength",
    type=float,
    help=f"The share of the steps that run from --image, above 0 and at most 1  [default: {STRENGTH}]",
)
@click.option(
    "--mask",
    type=click.Path(path_type=Path),
    help="A picture of the size of --image: white is made anew, black is kept.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--batch", default=8, show_default=True, type=click.IntRange(min=1), help="Images in one forward.")
@click.option(
    "--offload", is_flag=True, help="One part of the model on the GPU at a time: less memory, a few seconds slower."
)
@click.option(
    "--quantization",
    default="none",
    show_default=True,
    type=click.Choice(["none", "int8", "fp8", "nf4"]),
    help="Quantization of the transformer's weights.",
)
@click.option(
    "--compile", "compiled", is_flag=True, help="Compile the transformer's blocks first; pays off for many images."
)
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
    image: Path | None,
    strength: float | None,
    mask: Path | None,
    device: str,
    batch: int,
    offload: bool,
    quantization: str,
    compiled: bool,
) -> None:
    """Generate an image per PROMPT with the base model and a slow-fast bundle.

    In a folder, each image is written as soon as its batch is made; its PNG text says what it was made from.
    """
    texts = _prompts(prompts, prompts_file)
    _check_out(out, resume)
    _check_image(image, strength, mask)
    folder = bundle_folder(bundle)

    from pipeline import backbones, image_files
    from pipeline.bundle import generating
    from pipeline.bundle.manifest import Bundle
    from pipeline.bundle.source import Source
    from pipeline.flow.stepping import first_step

    loaded = Bundle.load(folder)
    source = Source.read(loaded, image, strength or STRENGTH, mask) if image else None
    one_file = out.suffix == ".png"
    tiles = image_files.Grid(len(texts), loaded.height, loaded.width) if one_file or grid else None
    loaded.check_base(teacher)
    origin = generating.Origin.of(loaded, quantization, source)
    files = [] if one_file else [out / name for name in image_files.names(texts)]
    _check_kept([image, mask], [*files, *([out if one_file else out / image_files.GRID] if tiles else [])])
    if source and mask is None and first_step(loaded.path, origin.steps, source.strength) == 0:
        said = f"--strength above {1 - 1 / origin.steps:g} runs all {origin.steps} steps, which start at noise alone"
        click.echo(f"{said}: --image does not change the picture", err=True)
    kept = generating.finished(origin, texts, seed, files) if resume else set()
    made: set[int] = set()
    saving: int | None = None  # a stop can come after a file is written, but before the file is counted
    try:
        if len(kept) < len(texts):
            backbone = backbones.load(loaded.base(teacher, quantization), device, offload=offload)
            if compiled:
                backbone.compile()
            with progress(total=len(texts) - len(kept), what="generating", unit="image") as bar:
                for number, made_image in generating.images(backbone, loaded, texts, seed, batch, kept, source):
                    if tiles:
                        tiles.place(number, made_image)
                    if files:
                        saving = number
                        image_files.save(made_image, files[number], origin.texts(texts[number], seed + number))
                        made.add(number)
                        show(files[number])
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
        show(path)
    if resume:
        click.echo(f"{len(kept)} images kept, {len(made)} made", err=True)


def _prompts(prompts: tuple[str, ...], prompts_file: Path | None) -> list[str]:
    from pipeline.prompts import argument, clean, read

    texts = [text for text in map(clean, map(argument, prompts)) if text]
    if prompts_file is not None:
        texts += read(prompts_file, "--prompts-file")
    if not texts:
        raise ValueError("generate needs at least one prompt, as an argument or in --prompts-file")
    return texts


def _check_out(out: Path, resume: bool) -> None:
    """Refuses an unusable --out before the model is loaded."""
    one_file = out.suffix == ".png"
    if out.suffix and not one_file:
        raise ValueError(f"--out must be a folder or a .png file, got {out}")
    if out.is_dir() if one_file else out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder or a .png file, got {out}, a {'folder' if one_file else 'file'}")
    if resume and one_file:
        raise ValueError(f"--resume needs a folder as --out, got {out}")
    refuse_inside("--out", out)


def _check_image(image: Path | None, strength: float | None, mask: Path | None) -> None:
    """Refuses options that do not go together, and a strength out of its range, before the model is loaded."""
    from pipeline.flow import strength as strengths

    for option, value in (("--strength", strength), ("--mask", mask)):
        if image is None and value is not None:
            raise ValueError(f"{option} needs --image, got {value}")
    if strength is not None:
        strengths.check("--strength", strength)


def _check_kept(sources: Sequence[Path | None], written: Sequence[Path]) -> None:
    """Refuses to write over a picture that the run reads."""
    for source in sources:
        if source is not None and source.resolve() in [file.resolve() for file in written]:
            raise ValueError(f"--out must not write over {source}, which the run starts from")
