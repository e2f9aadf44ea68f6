"""A trained-looking pair for the tiny recorded teacher, its bundle, and what stock diffusers makes of it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline

from pipeline import adapters
from pipeline.backbones.base import Backbone
from pipeline.bundle import write
from pipeline.bundle.manifest import Bundle
from pipeline.partition import PHASES
from tests.recorded import Recorded, record_tiny

PROMPTS, SEEDS = ["a red star", "a blue circle on black"], [7, 8]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Folders of two adapters, their states as trained, with alpha = 2 rank, and the bundle of both."""

    recorded: Recorded
    folders: dict[str, Path]
    states: dict[str, adapters.State]
    bundle: Bundle

    def written(self, folder: Path, **changes) -> Bundle:
        """Another bundle, with other arguments of `write.bundle`."""
        params = self.recorded.params
        arguments = {
            "trained": self.folders,
            "partition": self.recorded.partition,
            "teacher": params.teacher,
            "student": params.student,
        }
        return write.bundle(folder, **arguments | changes)


def make_pair(folder: Path) -> Pair:
    """Writes a tiny teacher, two adapters of all its linear layers and their bundle under `folder`."""
    recorded = record_tiny(folder)
    folders = {phase: folder / phase for phase in PHASES}
    states = {phase: write_adapter(recorded.backbone(), folders[phase], seed=i) for i, phase in enumerate(PHASES)}
    params = recorded.params
    made = write.bundle(folder / "bundle", folders, recorded.partition, params.teacher, params.student)
    return Pair(recorded=recorded, folders=folders, states=states, bundle=made)


def write_adapter(backbone: Backbone, folder: Path, *, seed: int, targets: str = "all", rank: int = 3):
    """A trained-looking adapter: B far from 0, alpha = 2 rank."""
    config = adapters.add(backbone, "made", rank, 2 * rank, targets, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.parameters(backbone.transformer, "made"):
            parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    state = adapters.state(backbone.transformer, "made")
    adapters.save(folder, state, config)
    backbone.transformer.unload_lora()
    return state


def stock(recorded: Recorded, folder: Path) -> FluxPipeline:
    """The stock pipeline of the teacher with the adapters of a bundle's folder."""
    pipe = FluxPipeline.from_pretrained(recorded.teacher)
    pipe.set_progress_bar_config(disable=True)
    for phase in Bundle.load(folder).phases:
        pipe.load_lora_weights(folder, weight_name=phase.file, adapter_name=phase.name)
    return pipe


def stock_images(pipe: FluxPipeline, bundle: Bundle, hand_over=FluxPipeline.set_adapters, **options) -> np.ndarray:
    """What the stock pipeline makes of PROMPTS and SEEDS; `hand_over(pipe, phase)` makes a phase act."""
    names = [phase.name for phase in bundle.phases for _ in phase.steps]

    def after_step(pipe, step, timestep, tensors):
        if step + 1 < len(names):
            hand_over(pipe, names[step + 1])
        return tensors

    hand_over(pipe, names[0])
    return pipe(
        PROMPTS,
        sigmas=list(bundle.u),
        guidance_scale=3.5,
        height=64,
        width=64,
        max_sequence_length=bundle.max_sequence_length,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        callback_on_step_end=after_step,
        output_type="np",
        **options,
    ).images


def pixels(images: np.ndarray) -> np.ndarray:
    """Images in [0, 1] as whole numbers up to 255."""
    return (images * 255).round().astype(np.int16)


def difference(images, others) -> int:
    """The largest distance of two pixels, of 255."""
    return np.abs(np.asarray(images, dtype=np.int16) - np.asarray(others, dtype=np.int16)).max()
