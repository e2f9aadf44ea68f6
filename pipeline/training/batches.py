"""The batch of a train step: student steps drawn from recordings by the seed and the train step's number alone."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import flow
from pipeline.backbones.base import Conditioning, concat
from pipeline.flow.solvers import TRAINABLE
from pipeline.objectives.base import Objective, Sample, each_step
from pipeline.recording.trajectories import Trajectories
from pipeline.training.jobs import Job, Step


@dataclass(frozen=True)
class Batch:
    """B student steps and the prompts that they were recorded under, on the CPU."""

    sample: Sample
    conditioning: Conditioning


def draw(trajectories: Trajectories, job: Job, objective: Objective, train_step: int) -> Batch:
    """Draws a batch of (trajectory, sample of the objective) pairs."""
    settings, parts = job.settings, objective.samples(job.steps)
    count = min(job.trajectories or len(trajectories), len(trajectories))
    chosen = items(count * len(parts), settings.batch, settings.seed, train_step)
    noise = generator(settings.seed, "noise", train_step)
    own_path = job.solver != "euler" and objective.samples is each_step
    return _batch(trajectories, job.steps, parts, chosen, count, noise, job if own_path else None)


def draw_anchors(anchors: Trajectories, job: Job, objective: Objective, train_step: int) -> Batch:
    """Draws a batch of (anchor, sample) pairs; the secant of each step is the guided base's own velocity."""
    settings, parts, count = job.settings, objective.samples(job.anchored), len(anchors)
    chosen = items(count * len(parts), settings.anchor_batch, settings.seed, train_step, "anchors")
    noise = generator(settings.seed, "anchors noise", train_step)
    return _batch(anchors, job.anchored, parts, chosen, count, noise, None)


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


def _batch(
    recorded: Trajectories,
    steps: Sequence[Step],
    parts: Sequence[Step],
    chosen: Tensor,
    count: int,
    noise: torch.Generator,
    job: Job | None,
) -> Batch:
    """The batch of the chosen pairs; pair n is trajectory n % count in part n // count of the path.

    `job` has the solver that makes the targets; None = Euler.
    """
    ids, pairs = chosen % count, torch.tensor(parts)[chosen // count]
    x, x_next, x_0 = recorded.states(ids, F.pad(pairs, (0, 1), value=recorded.steps)).float().unbind(1)
    sigma, sigma_next = recorded.sigmas[pairs].float().unbind(1)
    levels = recorded.sigmas[[*(start for start, _ in steps), steps[-1][1]]].float().expand(len(ids), -1)
    sample = Sample(
        x=x,
        x_next=x_next,
        x_0=x_0,
        noise=torch.randn(x.shape, generator=noise),
        sigma=sigma,
        sigma_next=sigma_next,
        target=flow.secant(x, x_next, sigma, sigma_next) if job is None else _targets(recorded, job, ids, pairs[:, 0]),
        levels=levels,
    )
    return Batch(sample, recorded.conditioning(ids))


def _targets(recorded: Trajectories, job: Job, ids: Tensor, starts: Tensor) -> Tensor:
    """The velocities with which the job's solver follows the recorded path, at each row's step, (B, T, C)."""
    path = torch.tensor(job.path)
    velocities = TRAINABLE[job.solver](recorded.states(ids, path).float(), recorded.sigmas[path])
    return velocities[torch.arange(len(ids)), torch.searchsorted(path, starts.contiguous())]
