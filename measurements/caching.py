"""What a cache over the teacher's guided steps buys, beside fewer guided steps in the same time.

    python -m measurements.caching               # the shipped teacher on 128 validation captions

The caches are diffusers' own hooks. All settings take turns in every round, and each round makes other images, so the
times are of the images that are scored. Times are ratios within a round: a slow minute affects all settings alike. The
page goes to docs/measured/caching.md, the figures to docs/measured/caching.json.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click
import numpy as np
import torch
from diffusers import hooks
from torch import Tensor, nn

from measurements import caching_page
from measurements.gpu import DOCS, ROOT, machine_name
from measurements.handoff import interleave, quartiles
from pipeline import artifacts, backbones, params
from pipeline.backbones import base
from pipeline.backbones.base import Conditioning
from pipeline.backbones.stock import StockBackbone
from pipeline.evaluation.scores import frechet, metrics
from pipeline.flow import schedule
from pipeline.flow.sampling import euler
from pipeline.params import TeacherParams
from pipeline.scenes import captions, checker

FIRST_SEED = 7000  # seed of the noise; neither the recordings nor the evaluation use it
CALIBRATION_SEED = 9000
TRIAL_STEPS = 8  # nearly equal noise levels on which `fault` tries a cache
MARK = "unconditional"  # a tensor that only the conditioning of the negative prompt has
PLAIN = (50, 25, 16, 8, 4)  # guided steps without a cache; the first are the reference

Ratios = dict[int, Tensor]
"""MagCache's ratios of the norms of residuals, (S,), by the number S of steps."""


def _taylor(order: int, lite: bool) -> Callable[[float, int, Ratios], Any]:
    return lambda interval, steps, ratios: hooks.TaylorSeerCacheConfig(
        cache_interval=int(interval), max_order=order, use_lite_mode=lite, taylor_factors_dtype=torch.float32
    )


CACHES: dict[str, Callable[[float, int, Ratios], Any]] = {
    "first block, threshold": lambda threshold, steps, ratios: hooks.FirstBlockCacheConfig(threshold=threshold),
    "TaylorSeer of attention, order 1, interval": _taylor(1, lite=False),
    "TaylorSeer lite, order 1, interval": _taylor(1, lite=True),
    "TaylorSeer lite, order 2, interval": _taylor(2, lite=True),
    "MagCache, threshold": lambda threshold, steps, ratios: hooks.MagCacheConfig(
        threshold=threshold, num_inference_steps=steps, mag_ratios=ratios[steps]
    ),
}
"""A diffusers configuration from the value of a setting, the number of steps and the ratios."""

Grid = dict[str, dict[int, tuple[float, ...]]]
GRID: Grid = {
    "first block, threshold": {50: (0.1, 0.2), 25: (0.1,), 16: (0.2,), 8: (0.2,)},
    "TaylorSeer of attention, order 1, interval": {25: (3,)},
    "TaylorSeer lite, order 1, interval": {50: (5,), 25: (2, 3), 16: (2,), 8: (2,)},
    "TaylorSeer lite, order 2, interval": {50: (3, 5)},
    "MagCache, threshold": {50: (0.06,), 25: (0.06,), 16: (0.06,), 8: (0.06,)},
}
"""The measured values of each cache, by the number of steps."""

DOUBTFUL: dict[str, Callable[[], Any]] = {
    "FasterCache": lambda: hooks.FasterCacheConfig(tensor_format="BCHW", current_timestep_callback=lambda: 500),
    "PyramidAttentionBroadcast": lambda: hooks.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    ),
    "SeaCache": lambda: hooks.SeaCacheConfig(retention_steps=0, cache_end_steps=0),
    "TextKVCache": hooks.TextKVCacheConfig,
}
"""diffusers' other caches; `fault` says why each does not serve here."""


class Sampler:
    """Guided Euler steps of a backbone, with at most one cache on its transformer."""

    def __init__(self, backbone: StockBackbone, size: TeacherParams) -> None:
        """Counts the products of the linear layers from now on.

        Args:
            backbone: All parts of the teacher.
            size: Guidance, negative prompt and resolution.
        """
        self.backbone, self.size, self.products = backbone, size, 0
        self.transformer: Any = backbone.transformer
        self.schedule = backbone.schedule(size.height, size.width)
        negative = backbone.encode([size.negative_prompt], size.max_sequence_length)
        self.negative = negative | {MARK: torch.ones(1)}
        for module in self.transformer.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(self._count)

    def _count(self, module: nn.Module, _: object, y: Tensor) -> None:
        self.products += module.in_features * y.numel()  # type: ignore[operator]

    @contextmanager
    def cached(self, config: Any) -> Iterator[None]:
        """Has an empty cache on the transformer meanwhile; None = no cache."""
        if config is None:
            yield
            return
        try:
            self.transformer.enable_cache(config)
            yield
        finally:
            self.transformer.disable_cache()

    def velocity(
        self,
        x: Tensor,
        sigma: Tensor,
        prompts: Conditioning,
        guidance_scale: float,
        grid: tuple[int, int] | None = None,
        where: Mapping[str, Any] = MappingProxyType({}),
    ) -> Tensor:
        """The backbone's velocity, in the cache's context of the branch; `where` tells the cache the step."""
        branch = "uncond" if MARK in prompts else "cond"
        prompts = {name: tensor for name, tensor in prompts.items() if name != MARK}
        with self.transformer.cache_context(branch, **where):
            return self.backbone.velocity(x, sigma, prompts, guidance_scale, grid)

    def latents(self, prompted: Conditioning, noise: Tensor, steps: int, config: Any = None) -> Tensor:
        """The latents (B, T, C) at the end of `steps` guided steps from noise, with a cache or without."""
        field = base.guided(
            self.backbone,
            prompted,
            self.negative,
            guidance_scale=self.size.guidance_scale,
            true_cfg_scale=self.size.true_cfg_scale,
            model=None if config is None else self.velocity,
        )
        with torch.inference_mode(), self.cached(config):
            return euler(field, noise, self.schedule.sigmas(schedule.base_levels(steps)))

    def batch(self, prompts: list[str], first_seed: int) -> tuple[Conditioning, Tensor]:
        """Conditioning and noise of prompts."""
        noise = self.backbone.noise(range(first_seed, first_seed + len(prompts)), self.size.height, self.size.width)
        return self.backbone.encode(prompts, self.size.max_sequence_length), noise

    def decode(self, x: Tensor) -> np.ndarray:
        """The images of latents, uint8 (B, H, W, 3)."""
        return self.backbone.decode(x, self.size.height, self.size.width).numpy()


def calibrated(sampler: Sampler, prompted: Conditioning, noise: Tensor, steps: int) -> Tensor:
    """MagCache's ratios, (steps,), mean of both branches; diffusers prints them, one list a branch."""
    printed = StringIO()
    with redirect_stdout(printed):
        sampler.latents(prompted, noise, steps, hooks.MagCacheConfig(calibrate=True, num_inference_steps=steps))
    return torch.tensor([json.loads(line) for line in printed.getvalue().splitlines() if line.startswith("[1")]).mean(0)


def fault(sampler: Sampler, config: Any, prompted: Conditioning, noise: Tensor) -> str:
    """Why a cache does not serve guided steps of this transformer; "" if it does."""
    branches = prompted, base.repeat(sampler.negative, len(noise))

    def follow(config: Any, branches: Sequence[Conditioning]) -> tuple[Tensor, int]:
        """The velocities of the first branch, and the products of the linear layers."""
        sampler.products, velocities = 0, []
        with torch.inference_mode(), sampler.cached(config):
            for step, sigma in enumerate(torch.linspace(0.51, 0.5, TRIAL_STEPS)):
                where = {"step_index": step, "num_inference_steps": TRIAL_STEPS, "sigma": float(sigma)}
                both = [
                    sampler.velocity(noise, sigma.expand(len(noise)), branch, sampler.size.guidance_scale, None, where)
                    for branch in branches
                ]
                velocities.append(both[0])
        return torch.stack(velocities), sampler.products

    _, whole = follow(None, branches[:1])
    try:
        alone, computed = follow(config, branches[:1])
        beside, _ = follow(config, branches)
    except Exception as error:
        return f"does not run, {type(error).__name__}: {error}".splitlines()[0]
    if not torch.equal(alone, beside):
        return "keeps one state for both branches, so what it returns under the prompt depends on the other branch"
    return "skips no layer" if computed == whole else ""


def settings(sampler: Sampler, trial: tuple[Conditioning, Tensor], grid: Grid) -> dict[str, tuple[int, Any]]:
    """Steps and diffusers configuration by name, the plain ones without a configuration."""
    ratios = {n: calibrated(sampler, *trial, n) for n in sorted({n for values in grid.values() for n in values})}
    return {f"{n} steps": (n, None) for n in PLAIN} | {
        f"{n} steps, {name} {value:g}": (n, CACHES[name](value, n, ratios))
        for name, values in grid.items()
        for n in values
        for value in values[n]
    }


def measure(sampler: Sampler, batches: int, batch: int, grid: Grid) -> dict:
    """All figures of the page."""
    trial = sampler.batch(captions.sample("train", batch, seed=7), CALIBRATION_SEED)
    every = settings(sampler, trial, grid)
    prompts = captions.sample("validation", batches * batch, seed=7)
    inputs = [sampler.batch(prompts[i : i + batch], FIRST_SEED + i) for i in range(0, len(prompts), batch)]
    ends: dict[str, list[Tensor]] = {name: [] for name in every}
    products = dict.fromkeys(every, 0)

    def arm(name: str) -> Callable[[], None]:
        calls, (steps, config) = count(-2), every[name]  # `interleave` begins with two uncounted rounds

        def run() -> None:
            number, sampler.products = next(calls), 0
            x = sampler.latents(*inputs[max(number, 0)], steps, config)
            if number >= 0:
                ends[name].append(x)
                products[name] += sampler.products

        return run

    def clock() -> float:
        if sampler.backbone.device.type == "cuda":
            torch.cuda.synchronize(sampler.backbone.device)
        return time.perf_counter()

    seconds = interleave({name: arm(name) for name in every}, batches, clock)
    images = {name: np.concatenate([sampler.decode(x) for x in ends[name]]) for name in every}
    reference = f"{PLAIN[0]} steps"
    wanted = images[reference]
    distances = {name: metrics.psnr(made, wanted) for name, made in images.items()}
    rows = []
    for name, made in images.items():
        took = quartiles(seconds[name], seconds[reference])[1]
        rows.append(
            {
                "setting": name,
                "cached": every[name][1] is not None,
                "forwards": 2 * PLAIN[0] * products[name] / products[reference],
                "time": took,
                "ms": 1e3 * took * float(np.median(seconds[reference])) / batch,
                "psnr": float(distances[name].mean()),
                "psnr_median": float(np.median(distances[name])),
                "score": float(checker.passes(made, prompts).mean()),
                "fd_scenes": frechet.frechet_distance(frechet.features(made), frechet.features(wanted)),
            }
        )
    return {
        "machine": machine_name(sampler.backbone.device),
        "prompts": len(prompts),
        "batch": batch,
        "rows": rows,
        "same_time": [rival(row, rows, distances) for row in rows[1:] if not row["cached"]],
        "unusable": {name: fault(sampler, config(), *trial) for name, config in DOUBTFUL.items()},
    }


def rival(plain: dict, rows: list[dict], distances: dict[str, np.ndarray]) -> dict:
    """The closest cached row that takes no longer than `plain`, and its mean gain in dB with the standard error."""
    name = plain["setting"]
    within = [row for row in rows if row["cached"] and row["time"] <= plain["time"]]
    if not within:
        return {"plain": name, "cached": None, "gain": None, "error": None}
    best = max(within, key=lambda row: row["psnr"])["setting"]
    gains = distances[best] - distances[name]
    error = float(gains.std(ddof=1) / len(gains) ** 0.5)
    return {"plain": name, "cached": best, "gain": float(gains.mean()), "error": error}


@click.command()
@click.option("--teacher", default=ROOT / "artifacts" / "teacher", type=click.Path(path_type=Path, exists=True))
@click.option("--batches", default=8, show_default=True, type=click.IntRange(min=1), help="Rounds, one batch each.")
@click.option("--batch", default=16, show_default=True, type=click.IntRange(min=2))
@click.option("--device", default="auto", show_default=True)
@click.option("--docs", type=click.Path(path_type=Path), default=DOCS, show_default=True)
def main(teacher: Path, batches: int, batch: int, device: str, docs: Path) -> None:
    """Measures caches on a teacher of the scenes and writes the page."""
    size = params.load(ROOT / "params.yaml").teacher
    sampler = Sampler(backbones.load(teacher, device), size)
    found = measure(sampler, batches, batch, GRID)
    artifacts.write_json(docs / "caching.json", found)
    (docs / "caching.md").write_text(caching_page.page(found), encoding="utf-8")
    click.echo(docs / "caching.md")


if __name__ == "__main__":
    main()
