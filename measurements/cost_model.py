"""Seconds from forwards: the FLOPs of a forward, a line fitted to measured times, and the break-even."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import diffusers
import numpy as np
import torch
from torch import Tensor, nn

from measurements.gpu import MODELS, ROOT, conditioning, write_configs
from pipeline import backbones, params, presets
from pipeline.backbones.base import Backbone, Conditioning
from pipeline.evaluation import arms, recipes
from pipeline.evaluation.timing import LATENCY_BATCHES
from pipeline.flow.guidance import forwards
from pipeline.params import Params
from pipeline.partition import compute, two_phase_plan
from pipeline.recording.trajectories import Recording

GUIDANCE = 3.5


@dataclass(frozen=True)
class Flops:
    """FLOPs of one forward of one image."""

    linear: float
    """In linear layers: 2 x in x out per token of the layer. Modulation has one token, a stream its own tokens."""
    attention: float
    """In attention: 4 T^2 width per block, T image and text tokens."""

    @property
    def forward(self) -> float:
        """FLOPs in linear layers and attention."""
        return self.linear + self.attention

    @property
    def merged_step(self) -> float:
        """FLOPs of a train step with merged weights: the backward takes twice the forward."""
        return 3 * self.forward

    @property
    def checkpointed_step(self) -> float:
        """FLOPs of a train step through peft's layers: two forwards, and a backward without gradients of the base."""
        return 3 * self.linear + 4 * self.attention


def count(backbone: Backbone, prompted: Conditioning, height: int, width: int) -> Flops:
    """Counts the FLOPs during one forward, which may run on the meta device."""
    linear, attention, handles = [], [], []
    tokens = backbone.latent_shape(height, width)[0] + prompted["prompt_embeds"].shape[1]

    def hook(module: nn.Linear, _, y: Tensor) -> None:
        linear.append(2 * module.in_features * y.numel())

    for name, module in backbone.transformer.named_modules():
        if isinstance(module, nn.Linear):
            handles.append(module.register_forward_hook(hook))
        if name.endswith("to_q"):
            attention.append(4 * tokens**2 * module.out_features)
    with torch.inference_mode():
        x = backbone.noise([0], height, width)
        backbone.velocity(x, torch.ones(1), prompted, GUIDANCE, backbone.grid(height, width))
    for handle in handles:
        handle.remove()
    return Flops(float(sum(linear)), float(sum(attention)))


def published(name: str) -> Backbone:
    """A published transformer on the meta device: it has no weights, and its forward computes nothing."""
    model = MODELS[name]
    with tempfile.TemporaryDirectory() as folder:
        with torch.device("meta"):
            transformer = getattr(diffusers, model.transformer)(**model.config)
        transformer.save_config(Path(folder) / "transformer")
        write_configs(model, Path(folder))
        backbone = backbones.load(folder, "cpu", parts=())
    transformer.register_forward_pre_hook(
        lambda _, args, inputs: (args, {k: v.to("meta") if torch.is_tensor(v) else v for k, v in inputs.items()}),
        with_kwargs=True,
    )
    backbone.parts, backbone.pipeline.transformer = ("transformer",), transformer
    return backbone


def work(backbone: Backbone, asked: Params) -> dict[str, int]:
    """Forwards of a recorded trajectory, a teacher's image, a student's image, an evaluation and its timing."""
    teacher, settings = asked.teacher, asked.evaluation
    schedule = backbone.schedule(teacher.height, teacher.width)
    compared = arms.build(
        recipes.Conditions(
            schedule=schedule,
            teacher_steps=teacher.steps,
            student=two_phase_plan(compute(asked, schedule)),
            teacher_scale=teacher.true_cfg_scale,
            student_scale=asked.student.true_cfg_scale,
            rivals=asked.train_controls.arms,
            free=settings.free,
            swaps=settings.swaps,
        )
    )
    nfe = {arm.name: arm.nfe for arm in compared}
    works = {arm.workload: arm.nfe for arm in compared}  # arms of equal work are timed once
    images = settings.prompts + min(settings.diversity_prompts, settings.prompts) * settings.diversity_seeds
    timed = 2 * settings.latency_repeats * sum(batch for batch in LATENCY_BATCHES if batch <= settings.batch)
    return {
        "recorded": Recording.from_params(asked, ()).nfe,
        "teacher": nfe[recipes.REFERENCE],
        "student": nfe[recipes.PRODUCT],
        "images": len(nfe) * images + len(works) * timed,
        "evaluation": sum(nfe.values()) * images + sum(works.values()) * timed,
        "train_steps": asked.train_slow.train_steps + asked.train_fast.train_steps,
        "train_forwards": forwards(asked.student.true_cfg_scale),
    }


def preset_params(name: str) -> Params:
    """The shipped parameters with a preset's values."""
    with tempfile.TemporaryDirectory() as folder:
        file = shutil.copy(ROOT / "params.yaml", folder)
        presets.apply(name, file)
        return params.load(file)


def published_work(name: str) -> dict:
    """A published model with its preset: the numbers of forwards, and the FLOPs of one forward."""
    backbone, preset = published(name), preset_params(name)
    teacher = preset.teacher
    flops = count(backbone, conditioning(MODELS[name], 1), teacher.height, teacher.width)
    parameters = sum(weight.numel() for weight in backbone.transformer.parameters())
    return {
        "parameters": parameters,
        "prompts": preset.trajectories.prompts,
        "tokens": backbone.latent_shape(teacher.height, teacher.width)[0],
        "forward": flops.forward,
        "train_step": flops.checkpointed_step,
        **work(backbone, preset),
    }


@dataclass(frozen=True)
class Fit:
    """seconds = overhead calls + flops / rate."""

    overhead: float
    """Seconds per call that do not depend on its FLOPs."""
    rate: float
    """FLOPs per second."""
    residuals: tuple[float, ...]
    """measured / fitted - 1 of each point."""

    @property
    def worst(self) -> float:
        """The largest absolute residual."""
        return max(abs(residual) for residual in self.residuals)


def fit(points: Sequence[Mapping]) -> Fit:
    """Least squares of the relative errors, so that short and long runs count alike.

    Args:
        points: Mappings with `calls`, the `flops` of all calls together, and `seconds`.
    """
    calls, flops, seconds = (np.array([point[key] for point in points]) for key in ("calls", "flops", "seconds"))
    terms = np.stack([calls, flops / flops.max()], 1)  # scaled to similar magnitudes for the solver
    (overhead, inverse), *_ = np.linalg.lstsq(terms / seconds[:, None], np.ones(len(seconds)), rcond=None)
    fitted = terms @ (overhead, inverse)
    return Fit(float(overhead), float(flops.max() / inverse), tuple((seconds / fitted - 1).tolist()))


def proportion(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """k of y = k x by least squares of the relative errors, and the largest relative residual."""
    x, y = np.array(x), np.array(y)
    k = (x / y).sum() / np.square(x / y).sum()
    return float(k), float(np.abs(y / (k * x) - 1).max())


def break_even(spent: float, teacher: float, student: float) -> float:
    """Images after which the spent cost is saved: spent / (teacher - student), all in the same unit.

    Raises:
        ValueError: A student's image costs no less than a teacher's.
    """
    if student >= teacher:
        raise ValueError(f"a student's image must cost less than a teacher's {teacher:g}, got {student:g}")
    return spent / (teacher - student)
