"""What rounding W + B A to bfloat16 loses, beside adapters that run next to the layers.

    python -m measurements.sixteen_bits          # artifacts/bundle on 64 held-out captions, a few minutes

The base's weights are rounded to bfloat16 once. The reference adds float32 adapters to them and computes in float32.
Every other arm makes the same pictures from the same noise. Text encoders and decoder are in float32 in all arms, so
only the transformer differs. The adapters also run at a fraction of their strength, since an adapter of another model
may change the weights less. The figures go to docs/measured/sixteen_bits.json, the page to sixteen_bits.md.
"""

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn

from measurements import sixteen_bits_page
from measurements.gpu import DOCS, ROOT, machine_name
from measurements.handoff import interleave, quartiles
from measurements.sixteen_bits_arms import ARMS, BARE, FLOOR, FUSED, REFERENCE, How, Select, States
from pipeline import adapters, artifacts, backbones
from pipeline.backbones import base
from pipeline.backbones.base import Backbone
from pipeline.backbones.teacher import Teacher
from pipeline.bundle.manifest import Bundle
from pipeline.evaluation.scores import metrics
from pipeline.flow.sampling import sample_plan
from pipeline.scenes import captions

BATCH = 16
FIRST_SEED = 11000  # seed of the noise; neither the recordings nor the evaluation use it
STRENGTHS = (1.0, 1 / 4, 1 / 16, 1 / 64)


def load(teacher: Path, dtype: str) -> Backbone:
    """A backbone whose transformer has weights that bfloat16 can hold; in float32 with all parts."""
    parts = backbones.PARTS if dtype == "fp32" else ("transformer",)
    backbone = backbones.load(Teacher(path=teacher, dtype=dtype), "cpu", parts)
    for weight in backbone.transformer.parameters():
        weight.data = weight.data.bfloat16().to(weight.dtype)
    return backbone


@dataclass(frozen=True)
class Run:
    """Latents (N, T, C) in float32 at sigma = 0, and their images, uint8 (N, H, W, 3)."""

    latents: Tensor
    images: np.ndarray


class Pictures:
    """The same N captions from the same noise, in any arm."""

    def __init__(self, teacher: Path, bundle: Bundle, prompts: list[str]) -> None:
        self.teacher, self.bundle, self.prompts = teacher, bundle, prompts
        self.backbones = {dtype: load(teacher, dtype) for dtype in ("fp32", "bf16")}
        whole = self.backbones["fp32"]
        self.positive = whole.encode(prompts, bundle.max_sequence_length)
        self.negative = whole.encode([bundle.guidance.negative_prompt], bundle.max_sequence_length)
        seeds = range(FIRST_SEED, FIRST_SEED + len(prompts))
        self.noise = whole.noise(seeds, bundle.height, bundle.width).bfloat16()

    def latents(self, backbone: Backbone, select: Select, rows: slice) -> Tensor:
        """The student's path from the noise of some captions."""
        guidance, bundle = self.bundle.guidance, self.bundle
        velocity = base.guided(
            backbone,
            {name: tensor[rows] for name, tensor in self.positive.items()},
            self.negative,
            guidance_scale=guidance.guidance_scale,
            true_cfg_scale=guidance.student_true_cfg_scale,
            grid=backbone.grid(bundle.height, bundle.width),
        )
        with torch.inference_mode():
            return sample_plan(velocity, self.noise[rows].to(backbone.dtype), bundle.plan(backbone), select)

    def run(self, how: How, states: States) -> "Run":
        """All pictures of an arm."""
        backbone, whole = self.backbones[how.dtype], self.backbones["fp32"]
        size, latents, images = (self.bundle.height, self.bundle.width), [], []
        with how.acting(backbone.transformer, states) as select:
            for first in range(0, len(self.prompts), BATCH):
                x = self.latents(backbone, select, slice(first, first + BATCH)).float()
                latents.append(x)
                with torch.inference_mode():
                    images.append(whole.decode(x, *size))
        return Run(torch.cat(latents), torch.cat(images).numpy())

    def seconds(self, states: States, rounds: int) -> dict[str, list[float]]:
        """Seconds per image of the arms in bfloat16, by round: denoising only, handoff included, one batch."""
        rows, arms = slice(0, min(BATCH, len(self.prompts))), {}
        with ExitStack() as stack:
            for name, how in ARMS.items():
                if how.dtype == "bf16":
                    backbone = load(self.teacher, how.dtype)  # one for each arm: the arms take turns
                    select = stack.enter_context(how.acting(backbone.transformer, states))
                    arms[name] = partial(self.latents, backbone, select, rows)
            found = interleave(arms, rounds, time.perf_counter)
        return {name: [took / rows.stop for took in times] for name, times in found.items()}


def weakened(states: States, strength: float) -> dict[str, adapters.State]:
    """The adapters with B multiplied by `strength`."""
    return {
        phase: {key: strength * tensor if ".lora_B." in key else tensor for key, tensor in state.items()}
        for phase, state in states.items()
    }


def rounding(transformer: nn.Module, states: States) -> dict[str, float]:
    """What bfloat16 does to the change B A of all adapted weights W, over all adapters.

    Returns:
        size: |B A| over |W|, norms over all elements.
        kept: Share of the elements of B A that are not 0 and for which W + B A rounds to another value than W.
        sum_error: |round(W + B A) - W - B A| over |B A|.
        factor_error: |round(B) round(A) - B A| over |B A|.
    """
    elements = changed = 0
    squares = dict.fromkeys(("weight", "delta", "sum", "factors"), 0.0)
    for state in states.values():
        for module in adapters.adapted(state):
            weight = transformer.get_submodule(module).weight.float()
            delta = adapters.delta(state, module)
            total = (weight + delta).bfloat16().float()
            short = {key: tensor.bfloat16().float() for key, tensor in state.items()}
            elements += int((delta != 0).sum())
            changed += int(((total != weight) & (delta != 0)).sum())
            errors = {
                "weight": weight,
                "delta": delta,
                "sum": total - weight - delta,
                "factors": adapters.delta(short, module) - delta,
            }
            for name, error in errors.items():
                squares[name] += float(error.double().square().sum())
    norm = {name: value**0.5 for name, value in squares.items()}
    return {
        "size": norm["delta"] / norm["weight"],
        "kept": changed / elements,
        "sum_error": norm["sum"] / norm["delta"],
        "factor_error": norm["factors"] / norm["delta"],
    }


def distances(run: Run, reference: Run, effect: Tensor) -> dict[str, float]:
    """How far the pictures of a run are from the reference.

    Args:
        run: The run.
        reference: The same pictures by the reference.
        effect: |x - x'| of each picture, (N,): how far the adapters move the latents.

    Returns:
        psnr, psnr_lowest: Mean and lowest of the pictures, dB.
        mean, max: Distance of two values of pixels.
        lost: Median over the pictures of the distance of the latents, over `effect`.
    """
    psnr = metrics.psnr(run.images, reference.images)
    gap = np.abs(run.images.astype(np.int16) - reference.images)
    return {
        "lost": float((_norms(run.latents - reference.latents) / effect).median()),
        "psnr": float(psnr.mean()),
        "psnr_lowest": float(psnr.min()),
        "mean": float(gap.mean()),
        "max": int(gap.max()),
    }


def _norms(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def measure(teacher: Path, bundle: Bundle, prompts: int, rounds: int) -> dict:
    """Every figure of the page."""
    pictures = Pictures(teacher, bundle, captions.sample("evaluation", prompts, seed=7))
    states, rows, changes = dict(bundle.states()), [], []
    for strength in STRENGTHS:
        weak = weakened(states, strength)
        changes.append({"strength": strength} | rounding(pictures.backbones["fp32"].transformer, weak))
        made = {name: pictures.run(how, weak) for name, how in ARMS.items()}
        effect = _norms(made[FLOOR].latents - made[REFERENCE].latents)
        for name, run in made.items():
            if name != REFERENCE:
                other = made[FLOOR if name == BARE else REFERENCE]
                rows.append({"strength": strength, "arm": name} | distances(run, other, effect))
    seconds = pictures.seconds(states, rounds)
    times = {
        name: {"ms": 1e3 * float(np.median(times)), "ratio": quartiles(times, seconds[FUSED])}
        for name, times in seconds.items()
    }
    return {
        "machine": machine_name(torch.device("cpu")),
        "prompts": prompts,
        "rank": bundle.rank,
        "batch": min(BATCH, prompts),
        "rounds": rounds,
        "native": bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        "changes": changes,
        "rows": rows,
        "times": times,
    }


@click.command()
@click.option("--prompts", default=64, show_default=True, type=click.IntRange(min=1))
@click.option("--rounds", default=15, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--teacher", default=ROOT / artifacts.TEACHER, show_default=True, type=click.Path(path_type=Path, exists=True)
)
@click.option(
    "--bundle", default=ROOT / artifacts.BUNDLE, show_default=True, type=click.Path(path_type=Path, exists=True)
)
@click.option("--docs", type=click.Path(path_type=Path), default=DOCS, show_default=True)
def main(prompts: int, rounds: int, teacher: Path, bundle: Path, docs: Path) -> None:
    """Compares the ways to run a pair in bfloat16 and writes the tables."""
    found = measure(teacher, Bundle.load(bundle), prompts, rounds)
    click.echo(json.dumps(found, indent=2))
    artifacts.write_json(docs / "sixteen_bits.json", found)
    (docs / "sixteen_bits.md").write_text(sixteen_bits_page.page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
