"""What a train step asks the model: student steps drawn from recordings, a function of the seed and the step alone."""

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import flow
from pipeline.backbones.base import Conditioning, concat
from pipeline.jobs import Job
from pipeline.objectives import Objective, Sample
from pipeline.trajectories import Trajectories


@dataclass(frozen=True)
class Batch:
    """B student steps as the model is asked for them, on the CPU in float32."""

    x: Tensor
    """Latents, shape (B, T, C)."""
    target: Tensor
    """Velocity, shape (B, T, C)."""
    sigma: Tensor
    """Shape (B,)."""
    conditioning: Conditioning


def draw(trajectories: Trajectories, job: Job, train_step: int, objective: Objective) -> Batch:
    """(trajectory, student step) pairs."""
    settings = job.settings
    count = min(job.trajectories or len(trajectories), len(trajectories))
    chosen = items(count * len(job.steps), settings.batch, settings.seed, train_step)
    ids, steps = chosen % count, torch.tensor(job.steps)[chosen // count]
    states = trajectories.states(ids, F.pad(steps, (0, 1), value=trajectories.steps)).float()
    noise = torch.randn(states[:, 0].shape, generator=generator(settings.seed, "noise", train_step))
    x, x_next, x_0 = states.unbind(1)
    sigma, sigma_next = trajectories.sigmas[steps].float().unbind(1)
    start, target = objective.problem(Sample(x, x_next, x_0, noise, sigma, sigma_next))
    return Batch(start, target, sigma, trajectories.conditioning(ids))


def draw_anchors(anchors: Trajectories, job: Job, train_step: int) -> Batch:
    """(anchor, student step) pairs; from a state to the next one the velocity is the guided base's own."""
    settings, count = job.settings, len(anchors)
    chosen = items(count * len(job.anchored), settings.anchor_batch, settings.seed, train_step, "anchors")
    ids, steps = chosen % count, torch.tensor(job.anchored)[chosen // count]
    x, x_next = anchors.states(ids, steps).float().unbind(1)
    sigma, sigma_next = anchors.sigmas[steps].float().unbind(1)
    return Batch(x, flow.secant(x, x_next, sigma, sigma_next), sigma, anchors.conditioning(ids))


def together(one: Batch, other: Batch) -> Batch:
    """The rows of both."""
    x, target, sigma = (torch.cat([getattr(one, name), getattr(other, name)]) for name in ("x", "target", "sigma"))
    return Batch(x, target, sigma, concat(one.conditioning, other.conditioning))


def items(count: int, batch: int, seed: int, train_step: int, stream: str = "order") -> Tensor:
    """The items of one batch, shape (batch,): all of `count` once, in a random order, before any comes again."""
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
