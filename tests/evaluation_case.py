"""A folder with all that an evaluation reads, made from random weights: a tiny teacher, a bundle, control adapters."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from pipeline import adapters, artifacts, backbones, controls, export, params, partition
from pipeline.params import Params
from tests.tiny import make_tiny_flux

PARAMS = Path(__file__).parent.parent / "params.yaml"
STRENGTH = 0.3  # standard deviation of the adapters' B: far from 0, where an adapter does nothing


def small_params(**evaluation) -> Params:
    """The shipped parameters with a small evaluation."""
    shipped = params.load(PARAMS)
    small = {
        "prompts": 7,
        "batch": 4,
        "diversity_prompts": 3,
        "diversity_seeds": 2,
        "latency_repeats": 1,
        "bootstrap": 100,
        "grid_prompts": 3,
    }
    return replace(
        shipped,
        teacher=replace(shipped.teacher, steps=10),
        partition=replace(shipped.partition, slow_steps=2, fast_steps=2, threshold_u=0.7),
        training=replace(shipped.training, rank=2, alpha=4.0),
        evaluation=replace(shipped.evaluation, **(small | evaluation)),
    )


def make_artifacts(settings: Params) -> None:
    """Writes the artifacts of the stages before evaluate into the working directory."""
    make_tiny_flux(settings.teacher.path)
    backbone = backbones.load(settings.teacher.path, "cpu", parts=("transformer",))
    schedule = backbone.schedule(settings.teacher.height, settings.teacher.width)
    split = partition.compute(settings, schedule)
    artifacts.write_json(artifacts.PARTITION, split.to_json())
    history = "train_step,loss,learning_rate\n" + "".join(f"{i},{1 / (i + 1)},0.001\n" for i in range(20))
    pair = {"slow": artifacts.TRAIN_SLOW, "fast": artifacts.TRAIN_FAST}
    jobs = [job.name for job in controls.jobs(settings, split)]
    _adapters(backbone, settings, [*pair.items(), *((name, artifacts.TRAIN_CONTROLS / name) for name in jobs)])
    for folder in pair.values():
        (folder / "history.csv").write_text(history)
    if jobs:
        rows = "".join(f"{name},{i},{2 / (i + 1)},0.001\n" for name in jobs for i in range(10))
        (artifacts.TRAIN_CONTROLS / "history.csv").write_text("arm,train_step,loss,learning_rate\n" + rows)
    export.write(artifacts.BUNDLE, pair, split, settings.teacher, settings.student)


def _adapters(backbone, settings: Params, folders: Iterable[tuple[str, Path]]) -> None:
    for seed, (name, folder) in enumerate(folders):
        config = adapters.add(backbone, name, settings.training.rank, settings.training.alpha, "all", seed)
        state = adapters.state(backbone.transformer, name)
        generator = torch.Generator().manual_seed(100 + seed)
        state = {
            key: STRENGTH * torch.randn(tensor.shape, generator=generator) if ".lora_B." in key else tensor
            for key, tensor in state.items()
        }
        adapters.save(folder, state, config)
