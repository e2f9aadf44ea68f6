"""A folder with all that an evaluation reads, made from random weights: a tiny teacher, a bundle, control adapters."""

import random
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from pipeline import adapters, artifacts, backbones, params, partition
from pipeline.bundle import write
from pipeline.evaluation import arms, generation, inputs
from pipeline.evaluation.arms import Arm
from pipeline.evaluation.inputs import Inputs
from pipeline.evaluation.samples import Images, Shard
from pipeline.params import Params
from pipeline.scenes import captions, renderer
from pipeline.training.rivals import chosen
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
        trajectories=replace(shipped.trajectories, steps=5),
        partition=replace(shipped.partition, slow_steps=2, fast_steps=2, threshold_u=0.7),
        training=replace(shipped.training, rank=2, alpha=4.0),
        evaluation=replace(shipped.evaluation, **(small | evaluation)),
    )


def make_artifacts(settings: Params) -> None:
    """Writes the artifacts of the stages before the evaluation into the working directory."""
    make_tiny_flux(settings.teacher.path)
    backbone = backbones.load(settings.teacher.path, "cpu", parts=("transformer",))
    schedule = backbone.schedule(settings.teacher.height, settings.teacher.width)
    split = partition.compute(settings, schedule)
    artifacts.write_json(artifacts.PARTITION, split.to_json())
    history = "train_step,loss,learning_rate\n" + "".join(f"{i},{1 / (i + 1)},0.001\n" for i in range(20))
    pair = {"slow": artifacts.TRAIN_SLOW, "fast": artifacts.TRAIN_FAST}
    rivals = chosen(settings.train_controls.arms).values()
    steps = arms.student_steps(partition.two_phase_plan(split))
    jobs = list(dict.fromkeys(name for rival in rivals for name in rival.adapters(steps)))
    _adapters(backbone, settings, [*pair.items(), *((name, artifacts.TRAIN_CONTROLS / name) for name in jobs)])
    for folder in pair.values():
        (folder / "history.csv").write_text(history)
    if jobs:
        rows = "".join(f"{name},{i},{2 / (i + 1)},0.001\n" for name in jobs for i in range(10))
        (artifacts.TRAIN_CONTROLS / "history.csv").write_text("arm,train_step,loss,learning_rate\n" + rows)
    write.bundle(artifacts.BUNDLE, pair, split, settings.teacher, settings.student)


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
        backbone.transformer.unload_lora()


FAULTS = {"teacher": 0.05, "base_guided": 0.1, "student": 0.2, "official": 1.0}  # share of wrong images, else FAULT
FAULT = 0.5


def drawn_images(arm: Arm, shard: Shard) -> np.ndarray:
    """Stands in for a model: the rendered scene of each caption, by arm more or less often another one, under noise."""
    images = []
    for prompt, seed in zip(shard.prompts, shard.seeds, strict=True):
        share = FAULTS.get(arm.name, FAULT)
        wrong = random.Random(f"{arm.name} {prompt} {seed}").random() < share
        caption = captions.parse("four rings on black" if wrong else prompt)
        scene = renderer.render(renderer.layout(caption, random.Random(seed)))
        noise = np.random.default_rng(seed).normal(0, 10 * share, scene.shape)
        images.append(np.clip(scene + noise, 0, 255).astype(np.uint8))
    return np.stack(images)


def read(settings: Params) -> Inputs:
    """What the stages' arms are made of."""
    return inputs.read(settings, inputs.of_stages(settings))


def no_progress(**shown):
    """A progress bar that nobody sees."""
    return nullcontext(SimpleNamespace(update=lambda n=1: None))


def draw(given: Inputs, folder: Path, make: Images = drawn_images) -> None:
    """Generates with images that are drawn instead of the model's."""
    vars(given)["sampler"] = SimpleNamespace(images=make)
    generation.generate(given, folder, no_progress)
