"""The batch of a train step: student steps drawn from recordings by the seed and the train step's number alone."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.backbones.base import Conditioning, concat
from pipeline.objectives.base import Sample
from pipeline.recording.trajectories import Trajectories
from pipeline.training.jobs import Job, Step


@dataclass(frozen=True)
class Batch:
    """B student steps and the prompts that they were recorded under, on the CPU."""

    sample: Sample
    conditioning: Conditioning


def draw(trajectories: Trajectories, job: Job, train_step: int) -> Batch:
    """Draws a batch of (trajectory, student step) pairs."""
    settings = job.settings
    count = min(job.trajectories or len(trajectories), len(trajectories))
    chosen = items(count * len(job.steps), settings.batch, settings.seed, train_step)
    noise = generator(settings.seed, "noise", train_step)
    return _batch(trajectories, job.steps, chosen, count, noise)


def draw_anchors(anchors: Trajectories, job: Job, train_step: int) -> Batch:
    """Draws a batch of (anchor, student step) pairs; the secant of each step is the guided base's own velocity."""
    settings, count = job.settings, len(anchors)
    chosen = items(count * len(job.anchored), settings.anchor_batch, settings.seed, train_step, "anchors")
    noise = generator(settings.seed, "anchors noise", train_step)
    return _batch(anchors, job.anchored, chosen, count, noise)


def together(one: Batch, other: Batch) -> Batch:
    """The rows of both batches."""
    parts = {f.name: torch.cat([getattr(one.sample, f.name), getattr(other.sample, f.name)]) for f in fields(Sample)}
    return Batch(Sample(**parts), concat(one.conditioning, other.conditioning))


def items(count: int, batch: int, seed: int, train_step: int, stream: str = "order") -> Tensor:
    """The items of one batch, shape (batch,): all `count` items come once, in random order, before any comes again."""
    positions = torch.arange(train_step * batch, (train_step + 1) * batch)
    epochs = positions // count
    drawn = [
        torch.randperm(count, generator=generator(seed, stream, epoch))[positions[epochs == epoch] % count]
        for epoch in epochs.unique().tolist()
    ]
    return torch.cat(drawn)


def generator(seed: int, stream: str, index: int) -> torch.Generator:
    """A CPU generator of its own for every seed, stream and index."""
    digest = hashlib.sha256(f"{seed} {stream} {index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _batch(recorded: Trajectories, steps: Sequence[Step], chosen: Tensor, count: int, noise: torch.Generator) -> Batch:
    """The batch of the chosen pairs; pair n is trajectory n % count in the student step n // count."""
    ids, pairs = chosen % count, torch.tensor(steps)[chosen // count]
    x, x_next, x_0 = recorded.states(ids, F.pad(pairs, (0, 1), value=recorded.steps)).float().unbind(1)
    sigma, sigma_next = recorded.sigmas[pairs].float().unbind(1)
    drawn = torch.randn(x.shape, generator=noise)
    sample = Sample(x=x, x_next=x_next, x_0=x_0, noise=drawn, sigma=sigma, sigma_next=sigma_next)
    return Batch(sample, recorded.conditioning(ids))
