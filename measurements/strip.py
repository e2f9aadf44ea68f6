"""docs/strip.png: one image of the teacher over one of the student for six captions, and the cost of an image.

    python -m measurements.strip        # after `dvc repro`: artifacts/bundle and artifacts/evaluation/metrics.json

The first held-out caption of each task is shown, with the seeds of the evaluation, so nobody chose the pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from measurements.gpu import ROOT
from pipeline import artifacts, backbones, params
from pipeline.backbones import base
from pipeline.backbones.base import Backbone
from pipeline.bundle import generating
from pipeline.bundle.manifest import Bundle
from pipeline.evaluation.pictures import INK, PAPER
from pipeline.evaluation.scores import exam
from pipeline.flow import schedule
from pipeline.flow.sampling import euler
from pipeline.prompts import load_prompts

SCALE = 3  # strip pixels per image pixel, so that small images stay sharp
GAP = 16  # pixels between images
LABEL = 190  # pixels of the labels' column
CAPTION = 76  # pixels above the images: captions of up to three lines
SOFT = (107, 103, 98)


@dataclass(frozen=True)
class Line:
    """One row of the strip.

    Attributes:
        title: Who made the images.
        nfe: Forwards per image.
        latency_ms: Time of one image at batch 1, with text encoding and decoding.
        images: uint8 (N, H, W, 3).
    """

    title: str
    nfe: int
    latency_ms: float
    images: np.ndarray

    @property
    def cost(self) -> str:
        """The forwards, and the seconds with two significant digits: 0.29, 0.031, 12."""
        seconds = self.latency_ms / 1000
        digits = max(0, 1 - int(np.floor(np.log10(seconds))))
        return f"{self.nfe} forwards\n{seconds:.{digits}f} s an image"


def first_of_each(tasks: Sequence[str]) -> list[int]:
    """The index of the first caption of each task, in the order of appearance."""
    return [tasks.index(task) for task in dict.fromkeys(tasks)]


def draw(captions: Sequence[str], lines: Sequence[Line]) -> Image.Image:
    """Captions across, lines down, the cost beside each line."""
    height, width = (SCALE * pixels for pixels in lines[0].images.shape[1:3])
    size = LABEL + len(captions) * (width + GAP), CAPTION + len(lines) * (height + GAP)
    canvas = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(canvas)
    small, large = ImageFont.load_default(20), ImageFont.load_default(26)
    for column, caption in enumerate(captions):
        place = LABEL + column * (width + GAP) + width // 2, CAPTION - GAP // 2
        pen.multiline_text(place, wrap(caption, small, width), INK, small, anchor="md", align="center")
    for row, line in enumerate(lines):
        top = CAPTION + row * (height + GAP)
        pen.text((GAP, top + height // 2 - 48), line.title, INK, large)
        pen.multiline_text((GAP, top + height // 2 - 8), line.cost, SOFT, small, spacing=6)
        for column, image in enumerate(line.images):
            shown = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(shown, (LABEL + column * (width + GAP), top))
    return canvas


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text in lines of at most `width` pixels; a longer word has a line of its own."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width or not lines[-1] else [*lines, word]
    return "\n".join(lines)


def teacher_images(backbone: Backbone, bundle: Bundle, captions: list[str], seeds: list[int]) -> np.ndarray:
    """The teacher's images, uint8 (N, H, W, 3), from the noise that `generating.generate` gives the student."""
    guidance, grid = bundle.guidance, backbone.grid(bundle.height, bundle.width)
    positive = backbone.encode(captions, bundle.max_sequence_length)
    negative = backbone.encode([guidance.negative_prompt], bundle.max_sequence_length)
    velocity = base.guided(
        backbone,
        positive,
        negative,
        guidance_scale=guidance.guidance_scale,
        true_cfg_scale=guidance.teacher_true_cfg_scale,
        grid=grid,
    )
    sigmas = backbone.schedule(bundle.height, bundle.width).sigmas(schedule.base_levels(bundle.teacher_steps))
    x = euler(velocity, backbone.noise(seeds, bundle.height, bundle.width), sigmas)
    return backbone.decode(x, bundle.height, bundle.width).numpy()


@click.command()
@click.option("--project", default=ROOT, show_default=True, type=click.Path(path_type=Path, exists=True))
@click.option("--out", default=ROOT / "docs" / "strip.png", show_default=True, type=click.Path(path_type=Path))
def main(project: Path, out: Path) -> None:
    """Draws the strip of a project's bundle."""
    loaded = params.load(project / "params.yaml")
    bundle = Bundle.load(project / artifacts.BUNDLE)
    measured = artifacts.read_json(project / artifacts.EVALUATION / "metrics.json")["arms"]
    times = artifacts.read_json(project / artifacts.LATENCY)["arms"]
    teacher, evaluation = loaded.teacher, loaded.evaluation
    prompts = load_prompts(None, evaluation.prompts, "evaluation", evaluation.seed, "evaluation")
    asked = exam.of(prompts, evaluation.seed, teacher.height, teacher.width)
    if asked.tasks is None:
        raise click.ClickException(f"the strip shows a caption of each task: {asked.unscored}")
    chosen = first_of_each(asked.tasks)
    captions, seeds = [prompts[i] for i in chosen], [evaluation.seed + i for i in chosen]
    backbone = backbones.load(replace(teacher.base, path=project / teacher.path), "cpu")
    with torch.inference_mode():
        made = {
            "teacher": teacher_images(backbone, bundle, captions, seeds),
            "student": generating.generate(backbone, bundle, captions, seeds).numpy(),
        }
    lines = [
        Line(name.capitalize(), measured[name]["nfe"], times[name]["latency_ms_batch1"], images)
        for name, images in made.items()
    ]
    with artifacts.atomic_file(out) as partial:
        draw(captions, lines).save(partial, "PNG", optimize=True)
    click.echo(out)


if __name__ == "__main__":
    main()
