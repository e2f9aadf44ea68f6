"""Scores a teacher on held-out captions, task by task."""

from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from pipeline import artifacts, backbones
from pipeline.backbones import base
from pipeline.evaluation.scores.retention import proportion
from pipeline.flow.sampling import euler
from pipeline.flow.schedule import base_levels
from pipeline.scenes import captions, checker
from teacher.settings import section
from teacher.text import T5_LENGTH


def images(backbone: base.Backbone, prompts: list[str], seeds: list[int], steps: int, scale: float) -> np.ndarray:
    """Guided images of prompts, uint8 (B, 64, 64, 3), 2 * steps forwards."""
    positive = backbone.encode(prompts, T5_LENGTH)
    negative = backbone.encode([""], T5_LENGTH)
    velocity = base.guided(backbone, positive, negative, guidance_scale=0.0, true_cfg_scale=scale)
    sigmas = backbone.schedule(64, 64).sigmas(base_levels(steps))
    with torch.inference_mode():
        return backbone.decode(euler(velocity, backbone.noise(seeds, 64, 64), sigmas), 64, 64).numpy()


@click.command()
@click.option("--teacher", type=click.Path(path_type=Path), default=Path("build/teacher"))
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/score"))
@click.option("--split", default="evaluation", show_default=True, type=click.Choice(captions.SPLITS))
def main(teacher: Path, out: Path, split: str) -> None:
    """Writes score.json, per task with 95 % intervals, and a grid of pictures."""
    p = section("score")
    backbone = backbones.load(teacher)
    prompts = captions.sample(split, p["prompts"], p["seed"])
    made = []
    for first in tqdm(range(0, len(prompts), p["batch"]), desc="score"):
        part = prompts[first : first + p["batch"]]
        seeds = [p["seed"] + first + i for i in range(len(part))]
        made.append(images(backbone, part, seeds, p["steps"], p["true_cfg_scale"]))
    made = np.concatenate(made)
    passed = checker.passes(made, prompts)
    tasks = np.array([captions.task(prompt) for prompt in prompts])
    rows = {name: passed[tasks == name] for name in captions.TASKS} | {"all": passed}
    scores = {name: dict(zip(("score", "low", "high"), _rounded(row), strict=True)) for name, row in rows.items()}
    artifacts.write_json(out / "score.json", {n: {**scores[n], "n": len(row)} for n, row in rows.items()})
    click.echo("\n".join(f"{n:18} {s['score']:.3f}  [{s['low']:.3f}, {s['high']:.3f}]" for n, s in scores.items()))
    rows = min(len(made) // 12, 8)
    grid = made[: 12 * rows].reshape(rows, 12, 64, 64, 3).transpose(0, 2, 1, 3, 4).reshape(rows * 64, 12 * 64, 3)
    Image.fromarray(grid).save(out / "grid.png")


def _rounded(passed: np.ndarray) -> tuple[float, float, float]:
    estimate = proportion(passed)
    return round(estimate.value, 4), round(estimate.low, 4), round(estimate.high, 4)


if __name__ == "__main__":
    main()
