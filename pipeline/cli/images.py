"""`glance generate`: images with a pair."""

from pathlib import Path

import click

from pipeline import artifacts
from pipeline.cli.edges import bundle_folder, one_sentence, show
from pipeline.console import progress

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
    help="Keep images in the folder whose PNG text has the same prompt, seed, bundle, base model and quantization; "
    "make the others.",
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
    folder = bundle_folder(bundle)

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
    saving: int | None = None  # a stop can come after a file is written, but before the file is counted
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
