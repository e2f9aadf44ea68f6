"""Measures the cost of the two adapters: the student's steps against the same number of base forwards.

    python -m measurements.handoff                      # the shipped teacher and artifacts/bundle, batch 1 and 16
    python -m measurements.handoff --teacher models/FLUX.1-dev --bundle nowhere --batch 1

Base, fused and unfused student take turns in every round, and each round begins with another of the three. Ratios are
taken within a round, so a slow minute affects all three alike. The table goes to docs/measured/handoff.md and the
figures to docs/measured/handoff.json, beside the results of other machines.
"""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn

from measurements.gpu import DOCS, ROOT, keep, machine_name, machine_tables, random_adapter
from pipeline import adapters, backbones, params
from pipeline.adapters import switching
from pipeline.backbones import base
from pipeline.backbones.teacher import Teacher
from pipeline.bundle.manifest import Bundle
from pipeline.flow.sampling import StepPlan, fixed_plan, sample_plan
from pipeline.partition import compute, two_phase_plan

LIMITS = {"fused": 1.03, "unfused": 1.15}
"""The largest accepted ratios to the time of the base forwards."""


def interleave(
    arms: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each arm in each round, after two uncounted rounds; round n begins with arm n."""
    names, seconds = list(arms), {name: [] for name in arms}
    for number in range(-2, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            start = clock()
            arms[name]()
            if number >= 0:
                seconds[name].append(clock() - start)
    return seconds


def quartiles(seconds: list[float], others: list[float]) -> list[float]:
    """The quartiles of the ratios within a round; the middle quartile is the median."""
    return np.quantile(np.array(seconds) / np.array(others), [0.25, 0.5, 0.75]).tolist()


def added_products(transformer: nn.Module, state: adapters.State) -> float:
    """Parameters in A and B over parameters in the linear layers: the least extra cost of an unfused adapter."""
    layers = sum(module.weight.numel() for module in transformer.modules() if isinstance(module, nn.Linear))
    return adapters.parameter_count(state) / layers


def measure(teacher: Path, folder: Path, batch: int, rounds: int, device: torch.device) -> dict:
    """All figures of one batch size. Without a bundle in `folder`, uses random adapters of the size in params.yaml."""
    shipped = params.load(ROOT / "params.yaml")
    bundle = Bundle.load(folder) if folder.is_dir() else None
    size = bundle or shipped.teacher
    model = Teacher(path=teacher, dtype=size.dtype)
    bare = backbones.load(model, device, ("text", "transformer"))
    beside = backbones.load(model, device, ("transformer",))  # a second backbone, which keeps the low-rank layers
    if bundle:
        plan, states, rank = bundle.plan(bare), bundle.states(), bundle.rank
    else:
        rank, targets = shipped.training.rank, shipped.training.targets
        plan = two_phase_plan(compute(shipped, bare.schedule(size.height, size.width)))
        states = {phase: random_adapter(bare, seed, rank, targets) for seed, phase in enumerate(("slow", "fast"))}
    prompts, grid = ["a red star on black"] * batch, bare.grid(size.height, size.width)
    conditioning = bare.encode(prompts, size.max_sequence_length)
    noise = bare.noise(range(batch), size.height, size.width)

    def run(backbone: base.Backbone, plan: StepPlan, select: Callable[[str | None], None]) -> Callable[[], Tensor]:
        velocity = base.guided(backbone, conditioning, None, guidance_scale=3.5, true_cfg_scale=1, grid=grid)

        def call() -> Tensor:
            with torch.inference_mode():
                return sample_plan(velocity, noise, plan, select)

        return call

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    with ExitStack() as stack:
        fused = stack.enter_context(switching.acting(bare.transformer, states, fused=True))
        unfused = stack.enter_context(switching.acting(beside.transformer, states, fused=False))
        arms = {
            "base": run(bare, fixed_plan(plan.sigmas), fused),
            "fused": run(bare, plan, fused),
            "unfused": run(beside, plan, unfused),
        }
        seconds = interleave(arms, rounds, clock)
    row = {
        "teacher": teacher.name,
        "adapters": "bundle" if bundle else "random",
        "rank": rank,
        "added": added_products(beside.transformer, states["slow"]),
        "steps": len(plan.adapters),
        "batch": batch,
        "rounds": rounds,
        "base_ms": 1e3 * float(np.median(seconds["base"])),
    }
    for name in LIMITS:
        row |= dict(zip((f"{name}_low", name, f"{name}_high"), quartiles(seconds[name], seconds["base"]), strict=True))
    return row


KEY = ("teacher", "adapters", "rank", "steps", "batch")
COLUMNS = {
    "teacher": "teacher",
    "adapters": "adapters",
    "rank": "rank",
    "added": "products that an adapter adds",
    "steps": "steps",
    "batch": "batch",
    "base_ms": "base forwards: ms",
    "fused": f"fused student (at most {LIMITS['fused']})",
    "unfused": f"unfused student (at most {LIMITS['unfused']})",
}


def table(results: dict[str, list[dict]]) -> str:
    """docs/measured/handoff.md."""
    lines = [
        "# What the adapters cost beside the base",
        "",
        "Generated by `python -m measurements.handoff` from handoff.json: the student's steps, handoff included,",
        "over as many forwards of the bare base. Values are medians of the ratios within a round, with their",
        "quartiles. In every round base, fused and unfused student take turns. A quantised base runs unfused adapters:",
        "their extra products are few beside wide layers, and many beside the narrow layers of the shipped teacher.",
    ]
    return "\n".join([*lines, *machine_tables(results, COLUMNS, _cell)]) + "\n"


def _cell(row: dict, key: str) -> str:
    if key in LIMITS:
        mark = "" if row[key] <= LIMITS[key] else " (above)"
        return f"{row[key]:.3f} [{row[f'{key}_low']:.3f}, {row[f'{key}_high']:.3f}]{mark}"
    if key == "added":
        return f"{row[key]:.0%}"
    return f"{row[key]:.1f}" if isinstance(row[key], float) else str(row[key])


@click.command()
@click.option(
    "--teacher", default=ROOT / "artifacts" / "teacher", show_default=True, type=click.Path(path_type=Path, exists=True)
)
@click.option("--bundle", default=ROOT / "artifacts" / "bundle", show_default=True, type=click.Path(path_type=Path))
@click.option("--batch", "batches", multiple=True, default=(1, 16), show_default=True)
@click.option("--rounds", default=30, show_default=True, type=click.IntRange(min=1))
@click.option("--device", default="auto", show_default=True)
@click.option("--docs", type=click.Path(path_type=Path), default=DOCS, show_default=True)
def main(teacher: Path, bundle: Path, batches: tuple[int, ...], rounds: int, device: str, docs: Path) -> None:
    """Measures the student against the base and writes the table."""
    place = backbones.resolve_device(device)
    for batch in batches:
        row = measure(teacher, bundle, batch, rounds, place)
        click.echo(json.dumps(row))
        results = keep(docs / "handoff.json", machine_name(place), row, KEY)
    (docs / "handoff.md").write_text(table(results), encoding="utf-8")


if __name__ == "__main__":
    main()
