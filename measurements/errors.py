"""Where the student goes wrong: its error along the path, which phase is at fault, and which images are lost.

    python -m measurements.errors                # artifacts/bundle on 256 validation captions, three minutes

The captions are validation captions, never held-out ones, since these results may guide changes. The tables go to
docs/measured/errors.md, the figures to docs/measured/errors.json.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from measurements.gpu import DOCS, ROOT
from pipeline import artifacts, backbones
from pipeline.adapters import switching
from pipeline.backbones import base
from pipeline.backbones.base import Backbone
from pipeline.bundle.manifest import Bundle
from pipeline.evaluation.scores import frechet, metrics
from pipeline.flow import schedule
from pipeline.flow.guidance import Velocity
from pipeline.flow.sampling import euler, euler_states
from pipeline.partition import Partition
from pipeline.scenes import captions

BATCH = 64
FIRST_SEED = 5000  # seed of the noise; neither the recordings nor the evaluation use it
LOST_DB = 15.0  # below this an image shows another background or layout, not a coarser version of the same picture
PERTURBATION_SEED = 3
BASE_STEPS = (10, 12, 16, 20, 25)  # steps of the guided base, besides the student's: how many lose fewer images


class Paths:
    """The teacher's paths and the student's from the same noise, over N prompts; latents (N, T, C)."""

    def __init__(self, backbone: Backbone, bundle: Bundle, partition: Partition, prompts: list[str]) -> None:
        """Follows the teacher.

        Args:
            backbone: All parts of the teacher.
            bundle: The pair.
            partition: Partition of the pair.
            prompts: N captions.
        """
        self.backbone, self.bundle, self.partition, self.prompts = backbone, bundle, partition, prompts
        self.sigmas = partition.schedule.sigmas(schedule.base_levels(partition.teacher_steps))
        self.positive = backbone.encode(prompts, bundle.max_sequence_length)
        self.negative = backbone.encode([bundle.guidance.negative_prompt], bundle.max_sequence_length)
        self.noise = backbone.noise(range(FIRST_SEED, FIRST_SEED + len(prompts)), bundle.height, bundle.width)
        self.teacher = self._whole(lambda rows: torch.stack([*self._guided(rows, self.noise[rows], self.sigmas)], 1))

    def _whole(self, part: Callable[[slice], Tensor]) -> Tensor:
        """Applies `part` to all prompts, BATCH at a time."""
        with torch.inference_mode():
            rows = (slice(first, first + BATCH) for first in range(0, len(self.prompts), BATCH))
            return torch.cat([part(some) for some in rows])

    def _field(self, rows: slice, scale: float) -> Velocity:
        positive = {name: tensor[rows] for name, tensor in self.positive.items()}
        embedded = self.bundle.guidance.guidance_scale
        return base.guided(self.backbone, positive, self.negative, guidance_scale=embedded, true_cfg_scale=scale)

    def _guided(self, rows: slice, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
        return euler_states(self._field(rows, self.bundle.guidance.teacher_true_cfg_scale), x, sigmas)

    def base(self, steps: int) -> Tensor:
        """The latents at the end of `steps` even steps of the guided base."""
        sigmas = self.partition.schedule.sigmas(schedule.base_levels(steps))
        return self._whole(lambda rows: [*self._guided(rows, self.noise[rows], sigmas)][-1])

    def finish(self, x: Tensor) -> Tensor:
        """The latents at the end of the teacher's path from states at the handoff."""
        rest = self.sigmas[self.partition.slow.end :]
        return self._whole(lambda rows: [*self._guided(rows, x[rows], rest)][-1])

    @contextmanager
    def student(self) -> Iterator[Callable[[str, Tensor, Tensor], Tensor]]:
        """Yields a function that follows the student: phase, states and noise levels to the states at the end."""
        with switching.acting(self.backbone.transformer, self.bundle.states()) as select:

            def follow(phase: str, x: Tensor, sigmas: Tensor) -> Tensor:
                select(phase)
                scale = self.bundle.guidance.student_true_cfg_scale
                return self._whole(lambda rows: euler(self._field(rows, scale), x[rows], sigmas))

            yield follow


def along(paths: Paths) -> tuple[list[dict], Tensor, Tensor]:
    """The student's error after each of its steps; and its states at the handoff and at the end.

    Every row has the mean squared error of one step from the teacher's state, and the error of the student's own path
    up to that step as mean and median over prompts.
    """
    rows, x, handoff = [], paths.noise, None
    with paths.student() as follow:
        for phase in paths.partition.phases:
            for i, (start, end) in enumerate(phase.pairs):
                levels = torch.tensor(phase.sigmas[i : i + 2], dtype=torch.float64)
                wanted = paths.teacher[:, end]
                one = _errors(follow(phase.name, paths.teacher[:, start], levels), wanted)
                x = follow(phase.name, x, levels)
                own = _errors(x, wanted)
                rows.append(
                    {
                        "phase": phase.name,
                        "teacher_step": end,
                        "sigma": float(levels[1]),
                        "step_mse": float(one.mean()),
                        "path_mse": float(own.mean()),
                        "path_mse_median": float(own.median()),
                    }
                )
            handoff = x if phase.name == "slow" else handoff
    return rows, handoff, x


def _errors(x: Tensor, wanted: Tensor) -> Tensor:
    return (x - wanted).square().flatten(1).mean(1)


def blame(paths: Paths, handoff: Tensor, end: Tensor) -> dict[str, Tensor]:
    """Latents at sigma = 0 of runs in which teacher and student take different phases."""
    exact = paths.teacher[:, paths.partition.slow.end]
    generator = torch.Generator().manual_seed(PERTURBATION_SEED)
    noise = torch.randn(exact.shape, generator=generator) * (handoff - exact).square().mean().sqrt()
    with paths.student() as follow:
        fast = follow("fast", exact, torch.tensor(paths.partition.fast.sigmas, dtype=torch.float64))
    return {
        "student in both phases": end,
        "teacher to the handoff, then student": fast,
        "student to the handoff, then teacher": paths.finish(handoff),
        "teacher, with noise of the student's error at the handoff": paths.finish(exact + noise),
        **{f"base, {n} guided steps": paths.base(n) for n in (len(paths.partition.u), *BASE_STEPS)},
    }


def judge(paths: Paths, ends: dict[str, Tensor]) -> list[dict]:
    """How far each run's images are from the teacher's, and how many lost images had an open background."""

    def decode(x: Tensor) -> np.ndarray:
        size = paths.bundle.height, paths.bundle.width
        return paths._whole(lambda rows: paths.backbone.decode(x[rows], *size)).numpy()

    reference = decode(paths.teacher[:, -1])
    features = frechet.features(reference)
    open_ = np.array([captions.parse(prompt).background is None for prompt in paths.prompts])
    rows = []
    for name, x in ends.items():
        images = decode(x)
        psnr = metrics.psnr(images, reference)
        lost = psnr < LOST_DB
        kept = np.where(lost[:, None, None, None], reference, images)
        rows.append(
            {
                "run": name,
                "psnr": float(psnr.mean()),
                "psnr_median": float(np.median(psnr)),
                "lost": int(lost.sum()),
                "lost_open": int((lost & open_).sum()),
                "open": int(open_.sum()),
                "fd_scenes": frechet.frechet_distance(frechet.features(images), features),
                "fd_scenes_without_lost": frechet.frechet_distance(frechet.features(kept), features),
            }
        )
    return rows


def page(found: dict) -> str:
    """docs/measured/errors.md."""
    steps, runs = found["steps"], found["runs"]
    lines = [
        "# Where the student goes wrong",
        "",
        "Generated by `python -m measurements.errors` from errors.json: the pair in artifacts/bundle on",
        f"{found['prompts']} validation captions, from the same noise as the teacher.",
        "",
        "## Along the path",
        "",
        "Mean squared error of the latents after one student step from the teacher's own state, and after the",
        "student's own path up to that step. If the second grows by more than the first adds, earlier errors grow.",
        "",
        "| phase | at teacher step | sigma | one step | own path, mean | own path, median |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in steps:
        errors = " | ".join(f"{1e3 * row[key]:.2f}e-3" for key in ("step_mse", "path_mse", "path_mse_median"))
        lines.append(f"| {row['phase']} | {row['teacher_step']} | {row['sigma']:.3f} | {errors} |")
    lines += [
        "",
        "## Which phase, and which images",
        "",
        f"An image is lost when its PSNR to the teacher's is below {LOST_DB:.0f} dB: another background or layout,",
        f"not a coarser picture. {runs[0]['open']} of the {found['prompts']} captions leave the background open.",
        "",
        "| run | PSNR, dB: mean | median | lost | background open | `fd_scenes` | without the lost |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in runs:
        quality = f"{row['psnr']:.1f} | {row['psnr_median']:.1f} | {row['lost']} | {row['lost_open']}"
        distances = f"{row['fd_scenes']:.3f} | {row['fd_scenes_without_lost']:.3f}"
        lines.append(f"| {row['run']} | {quality} | {distances} |")
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--prompts", default=256, show_default=True, type=click.IntRange(min=2))
@click.option("--project", default=ROOT, show_default=True, type=click.Path(path_type=Path, exists=True))
@click.option("--docs", type=click.Path(path_type=Path), default=DOCS, show_default=True)
def main(prompts: int, project: Path, docs: Path) -> None:
    """Compares a project's student with its teacher, step by step, and writes the tables."""
    partition = Partition.from_json(artifacts.read_json(project / artifacts.PARTITION))
    bundle = Bundle.load(project / artifacts.BUNDLE)
    backbone = backbones.load(project / artifacts.TEACHER, "cpu")
    paths = Paths(backbone, bundle, partition, captions.sample("validation", prompts, seed=7))
    steps, handoff, end = along(paths)
    found = {"prompts": prompts, "steps": steps, "runs": judge(paths, blame(paths, handoff, end))}
    click.echo(json.dumps(found, indent=2))
    artifacts.write_json(docs / "errors.json", found)
    (docs / "errors.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
