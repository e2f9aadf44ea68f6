"""Trains one adapter, in a loop that goes on where it was killed."""

import csv
import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline import adapters, backbones, flow, phases
from pipeline.artifacts import atomic_file, code_digest, digest_of, file_digest, save_torch
from pipeline.backbones.base import Backbone, Conditioning, concat, repeat
from pipeline.guidance import Velocity, forwards
from pipeline.objectives import OBJECTIVES, Objective, Sample
from pipeline.params import Params, PhaseParams, TrainingParams
from pipeline.trajectories import INDEX, Trajectories

CHECKPOINT = "checkpoint.pt"

Step = tuple[int, int]
"""A student step: the teacher's indices of its start and of its end."""


@dataclass(frozen=True)
class Settings:
    """How an adapter is trained; the words are those of params.yaml."""

    objective: str
    rank: int
    alpha: float
    targets: str
    batch: int
    anchor_batch: int
    precision: str
    checkpoint_every: int
    learning_rate: float
    train_steps: int
    seed: int

    @classmethod
    def of(cls, training: TrainingParams, phase: PhaseParams) -> "Settings":
        """The shared settings with one phase's own."""
        return cls(**asdict(training), **asdict(phase))


@dataclass(frozen=True)
class Job:
    """One adapter to train: everything its bytes depend on, but for the teacher, the trajectories and the code."""

    name: str
    steps: tuple[Step, ...]
    """The student steps that it serves, as a phase's `pairs`."""
    settings: Settings
    guidance_scale: float
    true_cfg_scale: float
    """The student's: above 1 its guided velocity is what is trained, at 1 the guidance is baked in."""
    anchored: tuple[Step, ...] = ()
    """The same student steps in the anchors' indices; () = no anchors."""
    trajectories: int | None = None
    """Train on the first so many trajectories; None = all."""


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
    if settings.objective not in OBJECTIVES:
        raise ValueError(f"training.objective must be one of {', '.join(OBJECTIVES)}, got {settings.objective!r}")
    objective = OBJECTIVES[settings.objective]
    adapters.add(backbone, job.name, settings.rank, settings.alpha, settings.targets, settings.seed)
    parameters = adapters.parameters(backbone.transformer, job.name)
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, fused=True)
    history = _restore(checkpoint, parameters, optimizer) if checkpoint else []
    negative = trajectories.negative()
    grid = backbone.grid(trajectories.recording.height, trajectories.recording.width)
    yield from history

    for train_step in range(len(history), settings.train_steps):
        batch = _draw(trajectories, job, train_step, objective)
        if anchors is not None and job.anchored and objective.guided:
            batch = _together(batch, _draw_anchors(anchors, job, train_step))
        x, target, sigma = (part.to(backbone.device) for part in (batch.x, batch.target, batch.sigma))
        learning_rate = settings.learning_rate * objective.rate(train_step / settings.train_steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate

        model = _with_adapter(backbone, job.name)
        with _attention(backbone, settings.precision):  # around both: checkpointing runs the forward again
            with _compute(backbone, settings.precision):
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


def write_history(path: Path, histories: dict[str | None, Sequence[TrainStep]]) -> None:
    """Writes losses as CSV: train_step, loss, learning_rate, and before them the arm unless its name is None."""
    rows = [({"arm": arm} if arm else {}) | asdict(record) for arm, history in histories.items() for record in history]
    columns = list(rows[0]) if rows else ["arm", "train_step", "loss", "learning_rate"]
    with atomic_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def key(job: Job, *recordings: Path) -> str:
    """Digest of what a job's bytes depend on: itself, what was recorded (its index names the teacher), the code."""
    return digest_of([job, *(file_digest(Path(folder) / INDEX) for folder in recordings), code_digest()])


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


@dataclass(frozen=True)
class _Batch:
    """B student steps as the model is asked for them, on the CPU in float32."""

    x: Tensor
    """Latents, shape (B, T, C)."""
    target: Tensor
    """Velocity, shape (B, T, C)."""
    sigma: Tensor
    """Shape (B,)."""
    conditioning: Conditioning


def _draw(trajectories: Trajectories, job: Job, train_step: int, objective: Objective) -> _Batch:
    """(trajectory, student step) pairs."""
    settings = job.settings
    count = min(job.trajectories or len(trajectories), len(trajectories))
    chosen = items(count * len(job.steps), settings.batch, settings.seed, train_step)
    ids, steps = chosen % count, torch.tensor(job.steps)[chosen // count]
    states = trajectories.states(ids, F.pad(steps, (0, 1), value=trajectories.steps)).float()
    noise = torch.randn(states[:, 0].shape, generator=generator(settings.seed, "noise", train_step))
    sample = Sample(*states.unbind(1), noise, *trajectories.sigmas[steps].float().unbind(1))
    return _Batch(*objective.problem(sample), sample.sigma, trajectories.conditioning(ids))


def _draw_anchors(anchors: Trajectories, job: Job, train_step: int) -> _Batch:
    """(anchor, student step) pairs; from a state to the next one the velocity is the guided base's own."""
    settings, count = job.settings, len(anchors)
    chosen = items(count * len(job.anchored), settings.anchor_batch, settings.seed, train_step, "anchors")
    ids, steps = chosen % count, torch.tensor(job.anchored)[chosen // count]
    x, x_next = anchors.states(ids, steps).float().unbind(1)
    sigma, sigma_next = anchors.sigmas[steps].float().unbind(1)
    return _Batch(x, flow.secant(x, x_next, sigma, sigma_next), sigma, anchors.conditioning(ids))


def _together(one: _Batch, other: _Batch) -> _Batch:
    parts = (torch.cat([getattr(one, name), getattr(other, name)]) for name in ("x", "target", "sigma"))
    return _Batch(*parts, concat(one.conditioning, other.conditioning))


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


def _attention(backbone: Backbone, precision: str) -> AbstractContextManager:
    """In bfloat16 on a CPU, plain products: their backward is several times as fast as the fused kernel's."""
    plain = precision == "bf16" and backbone.device.type == "cpu"
    return sdpa_kernel([SDPBackend.MATH]) if plain else nullcontext()


@contextmanager
def _compute(backbone: Backbone, precision: str) -> Iterator[None]:
    """The arithmetic of the forward: as the weights are, or bfloat16 where that is safe.

    The embedders' outputs stay as wide as the weights: the residual stream is summed in them, and diffusers rounds
    the timestep to their dtype (987 would become 988).
    """
    if precision == "fp32":
        yield
        return
    with ExitStack() as stack:
        for module in backbone.transformer.children():
            if hasattr(module, "weight") and module.weight.ndim == 2:
                hook = module.register_forward_hook(lambda module, args, y: y.to(module.weight.dtype))
                stack.callback(hook.remove)
        stack.enter_context(torch.autocast(backbone.device.type, torch.bfloat16))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")  # a slower norm, no error
        yield


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
