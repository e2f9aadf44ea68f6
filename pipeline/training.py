"""Trains one adapter, in a loop that goes on where it was killed."""

import csv
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline import adapters, artifacts, backbones, batches, objectives, phases, precision
from pipeline.artifacts import atomic_file, save_torch
from pipeline.backbones.base import Backbone, Conditioning, repeat
from pipeline.guidance import Velocity, forwards
from pipeline.jobs import Job, Recorded, key
from pipeline.params import Params
from pipeline.progress import Progress
from pipeline.trajectories import Trajectories

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class TrainStep:
    """What one optimiser step reports."""

    train_step: int
    loss: float
    learning_rate: float


def load_teacher(params: Params) -> Backbone:
    """The teacher as a training holds it: its transformer alone. Raises ValueError as `backbones.load` does."""
    teacher = params.teacher
    backbone = backbones.load(
        teacher.path, params.runtime.device, ("transformer",), teacher.dtype, teacher.quantization, teacher.loras
    )
    if params.runtime.gradient_checkpointing:
        backbone.transformer.enable_gradient_checkpointing()
    return backbone


def train(
    backbone: Backbone,
    trajectories: Trajectories,
    job: Job,
    checkpoint: Path | None = None,
    anchors: Trajectories | None = None,
) -> Iterator[TrainStep]:
    """Trains an adapter called `job.name` on the backbone, and leaves it there; yields one record per train step.

    AdamW on the mean squared error of the velocity. A batch is a function of the seed and of the train step alone.

    Args:
        backbone: Its transformer carries no adapter of that name.
        trajectories: The teacher's states and their conditioning.
        job: What to train.
        checkpoint: A folder for resumable states that nothing but this job uses. When it holds one, its records are
            yielded at once and training goes on from there, to the same bytes as without the interruption.
        anchors: What a part of each batch comes from, if the job and its objective have steps for them.

    Raises:
        ValueError: The objective or the targets are unknown, or a loss is not finite; no checkpoint keeps that step.
    """
    settings = job.settings
    objectives.check(settings.objective)
    objective = objectives.OBJECTIVES[settings.objective]
    adapters.add(backbone, job.name, settings.rank, settings.alpha, settings.targets, settings.seed)
    parameters = adapters.parameters(backbone.transformer, job.name)
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, fused=True)
    history = _restore(checkpoint, parameters, optimizer) if checkpoint else []
    negative = trajectories.negative()
    grid = backbone.grid(trajectories.recording.height, trajectories.recording.width)
    yield from history

    for train_step in range(len(history), settings.train_steps):
        batch = batches.draw(trajectories, job, train_step, objective)
        if anchors is not None and job.anchored and objective.guided:
            batch = batches.together(batch, batches.draw_anchors(anchors, job, train_step))
        x, target, sigma = (part.to(backbone.device) for part in (batch.x, batch.target, batch.sigma))
        learning_rate = settings.learning_rate * objective.rate(train_step / settings.train_steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate

        model = _with_adapter(backbone, job.name)
        with precision.attention(backbone, settings.precision):  # around both: checkpointing runs the forward again
            with precision.computing(backbone, settings.precision):
                velocity = _student(backbone, model, batch.conditioning, negative, job, objective.guided, grid)
                losses = (velocity(x, sigma).float() - target).square().flatten(1).mean(1)
            _check(losses.detach(), sigma, train_step, job.name)
            loss = losses.mean()
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()

        history.append(TrainStep(train_step, loss.item(), learning_rate))
        if checkpoint and (len(history) % settings.checkpoint_every == 0 or len(history) == settings.train_steps):
            _keep(checkpoint, parameters, optimizer, history)
        yield history[-1]


def train_to(
    folder: Path,
    backbone: Backbone,
    trajectories: Trajectories,
    job: Job,
    checkpoint: Path | None = None,
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
    folder: Path, jobs: Mapping[str | None, Job], recorded: Recorded, params: Params, progress: Progress
) -> None:
    """Trains adapters into an artifact, whole, with their losses as history.csv; a killed run goes on where it was.

    Args:
        folder: The artifact; its name is that of the checkpoints.
        jobs: By the folder in the artifact that each adapter goes to; None = the artifact itself.
        recorded: What they are trained on.
        params: All parameters.
        progress: Opens a progress bar.

    Raises:
        ValueError: As `train` and `load_teacher` do.
    """
    keys = {name: key(job, artifacts.TRAJECTORIES, artifacts.ANCHORS) for name, job in jobs.items()}
    checkpoints = {name: artifacts.checkpoint_dir(folder.name, key) for name, key in keys.items()}
    backbone = load_teacher(params)
    histories: dict[str | None, Sequence[TrainStep]] = {}
    with artifacts.atomic_dir(folder) as whole:
        for name, job in jobs.items():
            show = partial(progress, total=job.settings.train_steps, what=f"training {job.name}", unit="step")
            histories[name] = train_to(
                whole / (name or ""), backbone, recorded.trajectories, job, checkpoints[name], recorded.anchors, show
            )
        write_history(whole / "history.csv", histories)
    for checkpoint in checkpoints.values():
        shutil.rmtree(checkpoint)


def write_history(path: Path, histories: Mapping[str | None, Sequence[TrainStep]]) -> None:
    """Writes losses as CSV: train_step, loss, learning_rate, and before them the arm unless its name is None."""
    rows = [({"arm": arm} if arm else {}) | asdict(record) for arm, history in histories.items() for record in history]
    columns = list(rows[0]) if rows else ["arm", "train_step", "loss", "learning_rate"]
    with atomic_file(path) as whole, whole.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


class _Model(nn.Module):
    """A backbone's velocity as a module's forward, for `functional_call`."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.transformer = backbone.transformer
        self._velocity = backbone.velocity

    def forward(self, *args):
        return self._velocity(*args)


def _with_adapter(backbone: Backbone, name: str) -> Callable[..., Tensor]:
    """The backbone's velocity with an adapter at work.

    A float32 transformer runs with merged weights. In 16 bits a small delta would be lost in W + B A, and a large
    transformer would hold a gradient per weight: there peft's low-rank path serves, as it does for quantised
    weights and under gradient checkpointing.
    """
    parameters = adapters.parameters(backbone.transformer, name)
    checkpointing = backbone.transformer.is_gradient_checkpointing  # runs a block again, without the merged weights
    merge = backbone.dtype == torch.float32 and not checkpointing and phases.fusable(backbone.transformer)
    adapters.select(backbone.transformer, None if merge else name)
    for parameter in parameters:  # peft freezes what is not selected
        parameter.requires_grad_(True)
    if not merge:
        return backbone.velocity
    model = _Model(backbone)
    weights = {f"transformer.{key}": value for key, value in adapters.merged_weights(model.transformer, name).items()}
    return lambda *args: torch.func.functional_call(model, weights, args)


def _student(
    backbone: Backbone,
    model: Callable[..., Tensor],
    conditioning: Conditioning,
    negative: Conditioning,
    job: Job,
    guided: bool,
    grid: tuple[int, int],
) -> Velocity:
    """The student's velocity for one batch of prompts."""

    def on(prompts: Conditioning) -> Velocity:
        return lambda x, sigma: model(x, sigma, prompts, job.guidance_scale, grid)

    if not guided or forwards(job.true_cfg_scale) == 1:
        return on(conditioning)
    size = len(next(iter(conditioning.values())))
    return backbone.guide(on(conditioning), on(repeat(negative, size)), job.true_cfg_scale)


def _check(losses: Tensor, sigma: Tensor, train_step: int, name: str) -> None:
    bad = ~losses.isfinite()
    if bad.any():
        level = sigma[bad][0].item()
        raise ValueError(
            f"the loss must be finite, got {losses[bad][0].item()} at train step {train_step} of phase {name}, "
            f"sigma {level:.4f}; a lower learning_rate may help"
        )


def _keep(folder: Path, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, history: list) -> None:
    content = {
        "parameters": [parameter.detach() for parameter in parameters],
        "optimizer": optimizer.state_dict(),
        "history": [asdict(record) for record in history],
    }
    save_torch(folder / CHECKPOINT, content)


def _restore(folder: Path, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> list[TrainStep]:
    """Puts a checkpoint back and returns its history; an empty one when there is none."""
    if not (folder / CHECKPOINT).is_file():
        return []
    content = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
    with torch.no_grad():
        for parameter, kept in zip(parameters, content["parameters"], strict=True):
            parameter.copy_(kept)
    optimizer.load_state_dict(content["optimizer"])
    return [TrainStep(**record) for record in content["history"]]
