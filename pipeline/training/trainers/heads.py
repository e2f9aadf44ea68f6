"""Parallel decoding distillation from a recording: one trunk, and an output layer for each recorded step.

The idea of PDD, arXiv 2607.26004: from the state at the start of a student step, one forward gives the mean velocity of
every recorded step inside it. Here the targets are the recorded states, so no teacher runs. The output layers of a
student step fuse into one, which is exactly a LoRA of the output layer.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from pipeline import adapters
from pipeline.backbones import precision
from pipeline.backbones.base import Backbone, move
from pipeline.flow.guidance import forwards
from pipeline.flow.solvers import secants
from pipeline.objectives.base import cosine, error
from pipeline.recording.trajectories import Trajectories
from pipeline.training import batches
from pipeline.training.jobs import Job, Step
from pipeline.training.trainers.base import Memory, TrainStep, add_adapter, check_finite, of_backbone, set_rate
from pipeline.training.velocities import Velocities


@dataclass(frozen=True)
class Head:
    """What one recorded step adds to the output layer: W_n = W + (alpha / rank) B A, with B = 0 at first."""

    A: nn.Parameter
    """Shape (r, in)."""
    B: nn.Parameter
    """Shape (out, r)."""


class HeadsTrainer:
    """The trainer of `pdd`; arguments as for `MakeTrainer`, no anchors are used.

    All rows of a batch are the same student step. The learning rate falls as in the objective `trajectory`.

    Raises:
        ValueError: The targets are unknown, the student is guided, the velocity of the model is not the output of its
            last linear layer, or the rank is below the number of recorded steps in a student step.
    """

    def __init__(self, backbone: Backbone, trajectories: Trajectories, job: Job, anchors: Trajectories | None):
        settings = job.settings
        if forwards(job.true_cfg_scale) > 1:
            raise ValueError(f"the trainer pdd needs student.true_cfg_scale of at most 1, got {job.true_cfg_scale}")
        self.backbone, self.trajectories, self.job = backbone, trajectories, job
        self.negative = trajectories.negative()
        self.output = output_layer(backbone, trajectories)
        trunk = add_adapter(backbone, job)
        _bare(backbone.transformer, self.output)
        self.heads = {step: self._new_heads(step) for step in job.steps}
        heads = [matrix for own in self.heads.values() for head in own for matrix in (head.A, head.B)]
        self.optimizer = torch.optim.AdamW([*trunk, *heads], lr=settings.learning_rate, fused=True)
        self.memory = Memory([*trunk, *heads], {"adapter": self.optimizer})

    def step(self, train_step: int) -> TrainStep:
        """As `Trainer.step`."""
        job, settings = self.job, self.job.settings
        step = job.steps[int(batches.items(len(job.steps), 1, settings.seed, train_step, "steps"))]
        count = min(job.trajectories or len(self.trajectories), len(self.trajectories))
        ids = batches.items(count, settings.batch, settings.seed, train_step)
        recorded = range(step[0], step[1] + 1)
        states = self.trajectories.states(ids, recorded).float().to(self.backbone.device)
        sigmas = self.trajectories.sigmas[list(recorded)]
        conditioning = self.trajectories.conditioning(ids)
        student = Velocities(self.backbone, job, conditioning, self.negative, self.trajectories.recording).student(
            guided=False
        )
        sigma = sigmas[:1].float().expand(len(ids)).to(self.backbone.device)
        learning_rate = settings.learning_rate * cosine(train_step / settings.train_steps)
        set_rate(self.optimizer, learning_rate)
        with precision.attention(self.backbone, settings.precision):
            with self._decoding(self.heads[step]):
                found = student(states[:, 0], sigma).unflatten(-1, (len(recorded) - 1, -1)).movedim(-2, 1)
            losses = decoding_loss(found, states, sigmas)
            check_finite(losses.detach(), sigma, train_step, job.name)
            loss = losses.mean()
            self.optimizer.zero_grad()
            loss.backward()
        self.optimizer.step()
        return TrainStep(train_step, loss.item(), learning_rate)

    def trained(self) -> dict[str, tuple[adapters.State, LoraConfig]]:
        """An adapter for each student step, NAME_0 to NAME_(K - 1): the trunk, and the step's fused output layer."""
        trunk, config = of_backbone(self.backbone, self.job.name)
        config = copy.copy(config)
        config.target_modules = {*config.target_modules, self.output}
        found = {}
        for number, (step, heads) in enumerate(self.heads.items()):
            weights = shares(self.trajectories.sigmas[step[0] : step[1] + 1])
            A, B = fused(heads, weights, self.job.settings.rank)
            state = trunk | {f"{self.output}.lora_A.weight": A, f"{self.output}.lora_B.weight": B}
            found[f"{self.job.name}_{number}"] = dict(sorted(state.items())), config
        return found

    def _new_heads(self, step: Step) -> list[Head]:
        """The heads of a student step: of full rank, or so small that their ranks add up to the adapter's."""
        layer = self.backbone.transformer.get_submodule(self.output)
        out, width = layer.out_features, layer.in_features
        settings, count = self.job.settings, step[1] - step[0]
        rank = out if settings.rank >= out else settings.rank // count
        if rank == 0:
            raise ValueError(
                f"{self.job.section}.rank must be at least {count} for the trainer pdd, the recorded steps of a "
                f"student step, got {settings.rank}"
            )
        heads = []
        for recorded in range(*step):
            A = torch.randn(rank, width, generator=batches.generator(settings.seed, "head", recorded)) / settings.rank
            pair = A, torch.zeros(out, rank)
            heads.append(Head(*(nn.Parameter(matrix.to(self.backbone.device)) for matrix in pair)))
        return heads

    @contextmanager
    def _decoding(self, heads: Sequence[Head]) -> Iterator[None]:
        """Lets the output layer give the velocities of all heads beside each other: (B, T, heads * C)."""
        scale = self.job.settings.alpha / self.job.settings.rank

        def decode(module: nn.Module, args: tuple[Tensor], y: Tensor) -> Tensor:
            h = args[0].to(heads[0].A.dtype)
            return torch.cat([y + scale * F.linear(F.linear(h, head.A), head.B) for head in heads], -1)

        hook = self.backbone.transformer.get_submodule(self.output).register_forward_hook(decode)
        try:
            yield
        finally:
            hook.remove()


def shares(sigmas: Tensor) -> Tensor:
    """d sigma_n / d sigma: the share of each recorded step in a student step, (m + 1,) -> (m,); their sum is 1."""
    return sigmas.diff() / (sigmas[-1] - sigmas[0])


def decoding_loss(velocities: Tensor, states: Tensor, sigmas: Tensor) -> Tensor:
    """sum_n (d sigma_n / d sigma) |v_n - (x_(n+1) - x_n) / (sigma_(n+1) - sigma_n)|^2 of each row, (B,).

    Args:
        velocities: v_n of the m recorded steps inside a student step, (B, m, T, C).
        states: The recorded states x_n, (B, m + 1, T, C).
        sigmas: Their levels, (m + 1,).
    """
    targets = secants(states, sigmas)
    errors = torch.stack([error(v, target) for v, target in zip(velocities.unbind(1), targets.unbind(1), strict=True)])
    return shares(sigmas).to(errors) @ errors


@torch.no_grad()
def fused(heads: Sequence[Head], weights: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank) with B A = sum_n w_n B_n A_n exactly; unused ranks are 0. On the CPU.

    The heads' factors beside each other if they fit; else the ranks allow B = 1.
    """
    B = torch.cat([weight * head.B.cpu() for weight, head in zip(weights.float(), heads, strict=True)], 1)
    A = torch.cat([head.A.cpu() for head in heads])
    if len(A) > rank:
        A, B = B @ A, torch.eye(len(B))
    return F.pad(A, (0, 0, 0, rank - len(A))), F.pad(B, (0, rank - len(A)))


@torch.no_grad()
def output_layer(backbone: Backbone, trajectories: Trajectories) -> str:
    """The path of the linear layer whose output is the velocity of a bare backbone, found by one forward.

    Raises:
        ValueError: The last linear layer's output is not the velocity.
    """
    called: list[tuple[str, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda layer, args, y, path=path: called.append((path, y)))
        for path, layer in backbone.transformer.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    recording, x = trajectories.recording, trajectories.states([0], [0])[:, 0]
    grid = backbone.grid(recording.height, recording.width)
    conditioning = move(trajectories.conditioning([0]), backbone.device)
    v = backbone.velocity(x.to(backbone.device), torch.ones(1), conditioning, recording.guidance_scale, grid)
    for hook in hooks:
        hook.remove()
    path, y = called[-1]
    if y.shape != v.shape or not torch.equal(y.to(v), v):
        raise ValueError(
            "the trainer pdd needs a model whose velocity is the output of its last linear layer, got "
            f"{backbone.family}, whose last linear layer is {path}"
        )
    return path


def _bare(transformer: nn.Module, path: str) -> None:
    """Takes the adapter off one layer."""
    layer = transformer.get_submodule(path)
    if isinstance(layer, LoraLayer):
        transformer.set_submodule(path, layer.base_layer)
