"""What the training loop asks of a way to train adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from peft import LoraConfig
from torch import Tensor, nn

from pipeline import adapters
from pipeline.backbones.base import Backbone
from pipeline.recording.trajectories import Trajectories
from pipeline.training.jobs import Job


@dataclass(frozen=True)
class TrainStep:
    """What one optimiser step reports."""

    train_step: int
    loss: float
    learning_rate: float


@dataclass(frozen=True)
class Memory:
    """All that a training carries from step to step, and that a checkpoint holds. Its tensors are changed in place."""

    parameters: list[nn.Parameter]
    optimizers: Mapping[str, torch.optim.Optimizer]
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Trainer(Protocol):
    """A way to train the adapters of a job. Its batches depend on the seed and the train step alone."""

    memory: Memory

    def step(self, train_step: int) -> TrainStep:
        """Takes one optimiser step. Raises ValueError when a loss is not finite: then no state may be saved."""

    def trained(self) -> dict[str, tuple[adapters.State, LoraConfig]]:
        """The trained adapters by name, in peft's layout; an adapter of the job's own name, or several others."""


MakeTrainer = Callable[[Backbone, Trajectories, Job, Trajectories | None], Trainer]
"""(backbone, trajectories, job, anchors or None) -> a trainer, with its adapters on the backbone.

Raises ValueError when the objective or the targets are unknown.
"""


def add_adapter(backbone: Backbone, job: Job, name: str | None = None) -> list[nn.Parameter]:
    """Puts an adapter of the job's settings on the backbone and returns its parameters.

    Args:
        backbone: The model.
        job: Rank, alpha, targets and seed of the adapter.
        name: The adapter's name; None = the job's.

    Raises:
        ValueError: The targets are unknown.
    """
    settings, name = job.settings, name or job.name
    adapters.add(
        backbone,
        name,
        rank=settings.rank,
        alpha=settings.alpha,
        targets=settings.targets,
        seed=settings.seed,
        key=f"{job.section}.targets",
    )
    return adapters.parameters(backbone.transformer, name)


def set_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def check_finite(losses: Tensor, sigma: Tensor, train_step: int, name: str) -> None:
    """Raises ValueError, which names phase, train step and level, unless all losses (B,) are finite."""
    bad = ~losses.isfinite()
    if bad.any():
        level = sigma[bad][0].item()
        raise ValueError(
            f"the loss must be finite, got {losses[bad][0].item()} at train step {train_step} of phase {name}, "
            f"sigma {level:.4f}; a lower learning_rate may help"
        )


def of_backbone(backbone: Backbone, name: str) -> tuple[adapters.State, LoraConfig]:
    """An adapter on the backbone, as `Trainer.trained` returns it."""
    configs: Mapping[str, LoraConfig] = backbone.transformer.peft_config
    return adapters.state(backbone.transformer, name), configs[name]
