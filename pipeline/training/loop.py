"""Trains the adapters of a job, in a loop that goes on where it was killed."""

import csv
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from pipeline import adapters, artifacts, backbones
from pipeline.artifacts import atomic_file, code_digest, digest_of, file_digest, save_torch
from pipeline.backbones.base import Backbone
from pipeline.params import Params
from pipeline.progress import Progress
from pipeline.recording.trajectories import INDEX, Trajectories
from pipeline.training import trainers
from pipeline.training.data import TrainingData
from pipeline.training.jobs import Job
from pipeline.training.trainers.base import Memory, Trainer, TrainStep

CHECKPOINT = "checkpoint.pt"


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
) -> Generator[TrainStep, None, Trainer]:
    """Trains the adapters of a job, and leaves them on the backbone; yields one record per train step.

    Args:
        backbone: Its transformer carries no adapter of the job.
        trajectories: The teacher's states and their conditioning.
        job: What to train, and how.
        checkpoint: If it holds a state, the records of that state are yielded at once. Training then goes on from the
            state, to the same bytes as without the interruption.
        anchors: Anchors for a part of each batch, if the job has steps for them and the trainer uses them.

    Returns:
        The trainer, which gives the trained adapters.

    Raises:
        ValueError: The trainer, the objective or the targets are unknown, or a loss is not finite; such a step is
            never saved.
    """
    trainers.check("trainer", job.trainer)
    trainer = trainers.TRAINERS[job.trainer](backbone, trajectories, job, anchors)
    history = _restore(checkpoint.folder, trainer.memory) if checkpoint else []
    yield from history
    for train_step in range(len(history), job.settings.train_steps):
        history.append(trainer.step(train_step))
        if checkpoint and (len(history) % checkpoint.every == 0 or len(history) == job.settings.train_steps):
            _keep(checkpoint.folder, trainer.memory, history)
        yield history[-1]
    return trainer


def train_to(
    folder: Path,
    backbone: Backbone,
    trajectories: Trajectories,
    job: Job,
    checkpoint: Checkpoint | None = None,
    anchors: Trajectories | None = None,
    show: Callable[[Iterable[TrainStep]], Iterable[TrainStep]] = iter,
) -> list[TrainStep]:
    """Trains the adapters of a job, writes them in peft's layout and takes them off the backbone.

    Args:
        folder: Where the adapter of the job's name goes; others go to folders beside it, which have their names.
        backbone, trajectories, job, checkpoint, anchors: As in `train`, which says what is raised.
        show: Wraps the records as they come, for a progress bar.

    Returns:
        The record of every train step.
    """
    found: list[Trainer] = []

    def records() -> Iterator[TrainStep]:
        found.append((yield from train(backbone, trajectories, job, checkpoint, anchors)))

    history = list(show(records()))
    for name, (state, config) in found[0].trained().items():
        adapters.save(folder if name == job.name else folder.with_name(name), state, config)
    backbone.transformer.unload_lora()
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


def _keep(folder: Path, memory: Memory, history: Sequence[TrainStep]) -> None:
    content = {
        "parameters": [parameter.detach() for parameter in memory.parameters],
        "optimizers": {name: optimizer.state_dict() for name, optimizer in memory.optimizers.items()},
        "tensors": memory.tensors,
        "history": [asdict(record) for record in history],
    }
    save_torch(folder / CHECKPOINT, content)


def _restore(folder: Path, memory: Memory) -> list[TrainStep]:
    """Puts a checkpoint back and returns its history; an empty one when there is none."""
    if not (folder / CHECKPOINT).is_file():
        return []
    content = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
    with torch.no_grad():
        for parameter, kept in zip(memory.parameters, content["parameters"], strict=True):
            parameter.copy_(kept)
        for name, tensor in memory.tensors.items():
            tensor.copy_(content["tensors"][name])
    for name, optimizer in memory.optimizers.items():
        optimizer.load_state_dict(content["optimizers"][name])
    return [TrainStep(**record) for record in content["history"]]
