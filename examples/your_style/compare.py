"""Shows and measures the style: the teacher without and with it, and two pairs for the styled teacher.

    python -m examples.your_style.compare artifacts/bundle untrained --out your_style.png

All of them get the same held-out captions and the same noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch

from examples.your_style.look import negative
from measurements import strip
from pipeline import artifacts, backbones, params
from pipeline.bundle import generating
from pipeline.bundle.manifest import Bundle
from pipeline.evaluation.scores import metrics
from pipeline.prompts import load_prompts
from pipeline.scenes import captions, checker

BATCH = 40  # images in one forward


@dataclass(frozen=True)
class Row:
    """Who made the images, at what cost, and the images, uint8 (N, H, W, 3)."""

    title: str
    cost: str
    images: np.ndarray


def score(images: np.ndarray, prompts: Sequence[str]) -> float:
    """Share of images, (N, 64, 64, 3), in which the checker reads what the style makes of the prompt."""
    styled = [negative(captions.parse(prompt)).text() for prompt in prompts]
    return float(checker.passes(images, styled).mean())


def table(rows: Sequence[Row], reference: np.ndarray, prompts: Sequence[str]) -> str:
    """The rows as Markdown: forwards, score, and mean PSNR to the reference in dB, which has none itself."""
    lines = ["| images | cost | score | PSNR |", "| --- | --- | --- | --- |"]
    for row in rows:
        psnr = "" if row.images is reference else f"{metrics.psnr(row.images, reference).mean():.1f} dB"
        cells = " ".join(row.title.split()), row.cost.strip(), f"{100 * score(row.images, prompts):.0f} %", psnr
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command()
@click.argument("trained", type=click.Path(path_type=Path, exists=True))
@click.argument("added", type=click.Path(path_type=Path, exists=True))
@click.option("--prompts", "count", default=120, show_default=True, type=click.IntRange(min=6))
@click.option("--out", default=Path("your_style.png"), show_default=True, type=click.Path(path_type=Path))
def main(trained: Path, added: Path, count: int, out: Path) -> None:
    """Draws the first caption of each task and prints the numbers of all captions.

    TRAINED is the pair that was trained for the styled teacher. ADDED is a pair that was trained without the style, and
    imported for the styled teacher.
    """
    pairs, evaluation = {"trained": Bundle.load(trained), "added": Bundle.load(added)}, params.load().evaluation
    bundle = pairs["trained"]
    prompts = load_prompts(None, count, "evaluation", evaluation.seed, "evaluation")
    seeds = [evaluation.seed + i for i in range(count)]
    teachers = {"plain": backbones.load(bundle.base_model, "cpu"), "styled": backbones.load(bundle.base(), "cpu")}

    def made(make) -> np.ndarray:
        parts = [slice(first, first + BATCH) for first in range(0, count, BATCH)]
        with torch.inference_mode():
            return np.concatenate([np.asarray(make(prompts[part], seeds[part])) for part in parts])

    images = {
        name: made(lambda texts, own, base=base: strip.teacher_images(base, bundle, texts, own))
        for name, base in teachers.items()
    }
    images |= {
        name: made(lambda texts, own, pair=pair: generating.generate(teachers["styled"], pair, texts, own))
        for name, pair in pairs.items()
    }
    many, few = f"{2 * bundle.teacher_steps} forwards", f"{len(bundle.steps)} forwards"
    rows = [
        Row("Teacher", many, images["plain"]),
        Row("Styled\nteacher", f"\n{many}", images["styled"]),
        Row("Styled\nstudent", f"\n{few}", images["trained"]),
        Row("Shipped pair\n+ style LoRA", f"\n{few}", images["added"]),
    ]
    click.echo(table(rows, images["styled"], prompts))
    chosen = strip.first_of_each([captions.task(prompt) for prompt in prompts])
    shown = [Row(row.title, row.cost, row.images[chosen]) for row in rows]
    with artifacts.atomic_file(out) as partial:
        strip.draw([prompts[i] for i in chosen], shown).save(partial, "PNG", optimize=True)
    click.echo(out)


if __name__ == "__main__":
    main()
