"""Trains one adapter, in a loop that goes on where it was killed."""

import csv
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline import adapters, artifacts, backbones, objectives
from pipeline.artifacts import atomic_file, code_digest, digest_of, file_digest, save_torch
from pipeline.backbones import precision
from pipeline.backbones.base import Backbone
from pipeline.params import Params
from pipeline.progress import Progress
from pipeline.recording.trajectories import INDEX, Trajectories
from pipeline.training import batches
from pipeline.training.data import TrainingData
from pipeline.training.jobs import Job
from pipeline.training.velocities import Velocities

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class TrainStep:
    """What one optimiser step reports."""

    train_step: int
    loss: float
    learning_rate: float


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often a training saves its state, so that a killed training can go on."""

    folder: Path
    """A folder for one job alone."""
    every: int
    """Train steps from one saved state to the next."""


def checkpoint_key(job: Job, *recordings: Path) -> str:
    """Digest of all that a job's bytes depend on: the job, the recordings (which name the teacher) and the code."""
    return digest_of([job, *(file_digest(Path(folder) / INDEX) for folder in recordings), code_digest()])


def load_teacher(params: Params) -> Backbone:
    """The teacher for a training: its transformer alone. Raises ValueError as `backbones.load` does."""
    backbone = backbones.load(params.teacher.base, params.runtime.device, ("transformer",))
    if params.runtime.gradient_checkpointing:
        backbone.transformer.enable_gradient_checkpointing()
    return backbone


def train(
    backbone: Backbone,
    trajectories: Trajectories,
    job: Job,
    checkpoint: Checkpoint | None = None,
    anchors: Trajectories | None = None,
) -> Iterator[TrainStep]:
    """Trains an adapter called `job.name` on the backbone, and leaves it there; yields one record per train step.

    AdamW on the mean of the objective's losses. A batch is a function of the seed and of the train step alone.

    Args:
        backbone: Its transformer carries no adapter of that name.
        trajectories: The teacher's states and their conditioning.
        job: What to train.
        checkpoint: If it holds a state, the records of that state are yielded at once. Training then goes on from the
            state, to the same bytes as without the interruption.
        anchors: Anchors for a part of each batch, if the job has steps for them and the objective is guided.

    Raises:
        ValueError: The objective or the targets are unknown, or a loss is not finite; such a step is never saved.
    """
    settings = job.settings
    objectives.check(f"{job.section}.objective", settings.objective)
    objective = objectives.OBJECTIVES[settings.objective]
    adapters.add(
        backbone,
        job.name,
        rank=settings.rank,
        alpha=settings.alpha,
        targets=settings.targets,
        seed=settings.seed,
        key=f"{job.section}.targets",
    )
    parameters = adapters.parameters(backbone.transformer, job.name)
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, fused=True)
    state = {name: tensor.to(backbone.device) for name, tensor in objective.state().items()}
    history = _restore(checkpoint.folder, parameters, optimizer, state) if checkpoint else []
    negative = trajectories.negative()
    yield from history

    for train_step in range(len(history), settings.train_steps):
        batch = batches.draw(trajectories, job, train_step)
        if anchors is not None and job.anchored and objective.guided:
            batch = batches.together(batch, batches.draw_anchors(anchors, job, train_step))
        sample = batch.sample.to(backbone.device)
        learning_rate = settings.learning_rate * objective.rate(train_step / settings.train_steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate

        velocities = Velocities(backbone, job, batch.conditioning, negative, trajectories.recording)
        student = velocities.student(guided=objective.guided)
        with precision.attention(backbone, settings.precision):  # backward too: checkpointing runs the forward in it
            losses = objective.loss(sample, student, velocities.teacher, **state)
            _check(losses.detach(), sample.sigma, train_step, job.name)
            loss = losses.mean()
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()

        history.append(TrainStep(train_step, loss.item(), learning_rate))
        if checkpoint and (len(history) % checkpoint.every == 0 or len(history) == settings.train_steps):
            _keep(checkpoint.folder, parameters, optimizer, state, history)
        yield history[-1]


def train_to(
    folder: Path,
    backbone: Backbone,
    trajectories: Trajectories,
    job: Job,
    checkpoint: Checkpoint | None = None,
    anchors: Trajectories | None = None,
    show: Callable[[Iterable[TrainStep]], Iterable[TrainStep]] = iter,
) -> list[TrainStep]:
    """Trains an adapter, writes it in peft's layout and takes it off the backbone.

    Args:
        folder: Where the adapter goes.
        backbone, trajectories, job, checkpoint, anchors: As in `train`, which says what is raised.
        show: Wraps the records as they come, for a progress bar.

    Returns:
        The record of every train step.
    """
    history = list(show(train(backbone, trajectories, job, checkpoint, anchors)))
    transformer = backbone.transformer
    adapters.save(folder, adapters.state(transformer, job.name), transformer.peft_config[job.name])
    transformer.unload_lora()
    return history


def to_artifact(
    folder: Path, jobs: Mapping[str | None, Job], data: TrainingData, params: Params, progress: Progress
) -> None:
    """Trains adapters and writes them whole, with their losses as history.csv; a killed run goes on where it stopped.

    Args:
        folder: The artifact; the checkpoints have the same name.
        jobs: The jobs by the sub-folder that each adapter goes to; None = the artifact itself.
        data: What the adapters are trained on.
        params: All parameters.
        progress: Opens a progress bar.

    Raises:
        ValueError: As `train` and `load_teacher` do.
    """
    keys = {name: checkpoint_key(job, artifacts.TRAJECTORIES, artifacts.ANCHORS) for name, job in jobs.items()}
    every = params.runtime.checkpoint_every
    checkpoints = {name: Checkpoint(artifacts.checkpoint_dir(folder.name, key), every) for name, key in keys.items()}
    backbone = load_teacher(params)
    histories: dict[str | None, Sequence[TrainStep]] = {}
    with artifacts.atomic_dir(folder) as whole:
        for name, job in jobs.items():
            show = partial(progress, total=job.settings.train_steps, what=f"training {job.name}", unit="step")
            histories[name] = train_to(
                whole / (name or ""), backbone, data.trajectories, job, checkpoints[name], data.anchors, show
            )
        write_history(whole / "history.csv", histories)
    for checkpoint in checkpoints.values():
        shutil.rmtree(checkpoint.folder)


def write_history(path: Path, histories: Mapping[str | None, Sequence[TrainStep]]) -> None:
    """Writes losses as CSV: train_step, loss, learning_rate, and before them the arm unless its name is None."""
    rows = [({"arm": arm} if arm else {}) | asdict(record) for arm, history in histories.items() for record in history]
    columns = list(rows[0]) if rows else ["arm", "train_step", "loss", "learning_rate"]
    with atomic_file(path) as whole, whole.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _check(losses: Tensor, sigma: Tensor, train_step: int, name: str) -> None:
    bad = ~losses.isfinite()
    if bad.any():
        level = sigma[bad][0].item()
        raise ValueError(
            f"the loss must be finite, got {losses[bad][0].item()} at train step {train_step} of phase {name}, "
            f"sigma {level:.4f}; a lower learning_rate may help"
        )


def _keep(
    folder: Path,
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Tensor],
    history: Sequence[TrainStep],
) -> None:
    content = {
        "parameters": [parameter.detach() for parameter in parameters],
        "optimizer": optimizer.state_dict(),
        "objective": dict(state),
        "history": [asdict(record) for record in history],
    }
    save_torch(folder / CHECKPOINT, content)


def _restore(
    folder: Path, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]
) -> list[TrainStep]:
    """Puts a checkpoint back and returns its history; an empty one when there is none."""
    if not (folder / CHECKPOINT).is_file():
        return []
    content = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
    with torch.no_grad():
        for parameter, kept in zip(parameters, content["parameters"], strict=True):
            parameter.copy_(kept)
        for name, tensor in state.items():
            tensor.copy_(content["objective"][name])
    optimizer.load_state_dict(content["optimizer"])
    return [TrainStep(**record) for record in content["history"]]
