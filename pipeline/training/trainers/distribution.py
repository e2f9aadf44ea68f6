"""Distribution matching distillation: a generator and a critic, two adapters on one frozen teacher; no GAN.

Yin et al., arXiv 2405.14867 (DMD2), with its backward simulation, in the velocities of flow matching.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from peft import LoraConfig
from torch import Tensor

from pipeline import adapters, flow
from pipeline.backbones import precision
from pipeline.backbones.base import Backbone
from pipeline.flow.guidance import Velocity
from pipeline.flow.solvers import Noise, Step, renoise
from pipeline.objectives.base import error
from pipeline.recording.trajectories import Trajectories
from pipeline.training import batches
from pipeline.training.costs import CRITIC_STEPS
from pipeline.training.jobs import Job
from pipeline.training.trainers.base import Memory, TrainStep, add_adapter, check_finite, of_backbone, set_rate
from pipeline.training.velocities import Velocities

CRITIC_RATE = 5  # the critic's learning rate over the generator's: TDM, Luo et al., arXiv 2503.06674
LEVELS = 0.02, 0.98  # noise levels at which the distributions are compared: DMD2's code, of 1000 timesteps
SMALLEST = 1e-6  # added to the mean that a gradient is divided by


@dataclass(frozen=True)
class Draw:
    """What one step of an optimiser is made from: B recorded prompts, fresh noise, and how far the generator goes."""

    velocities: Velocities
    noise: Noise
    level: Callable[[], Tensor]
    """Draws U[0, 1], shape (B,)."""
    steps: int
    """Steps k that the generator takes before the call that gives x_0."""


class DistributionTrainer:
    """The trainer of DMD2; arguments as for `MakeTrainer`, no anchors are used. Raises ValueError for unknown targets.

    A train step is CRITIC_STEPS steps of the critic, then one of the generator, each with new prompts and noise. The
    generator starts as the base, runs at the job's true_cfg_scale and is the adapter of the job's name. The critic
    starts as the base too. Both learning rates are constant. The reported loss is the generator's.
    """

    def __init__(self, backbone: Backbone, trajectories: Trajectories, job: Job, anchors: Trajectories | None):
        settings = job.settings
        self.backbone, self.trajectories, self.job = backbone, trajectories, job
        self.critic = f"{job.name}_critic"
        self.levels: list[float] = trajectories.sigmas[list(job.path)].tolist()
        self.negative = trajectories.negative()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # two adapters are meant
            parameters = [add_adapter(backbone, job, name) for name in (job.name, self.critic)]
        rates = settings.learning_rate, CRITIC_RATE * settings.learning_rate
        self.optimizers = {
            name: torch.optim.AdamW(own, lr=rate, fused=True)
            for name, own, rate in zip(("generator", "critic"), parameters, rates, strict=True)
        }
        self.memory = Memory([parameter for own in parameters for parameter in own], self.optimizers)

    def step(self, train_step: int) -> TrainStep:
        """As `Trainer.step`."""
        rate = self.job.settings.learning_rate
        set_rate(self.optimizers["generator"], rate)
        set_rate(self.optimizers["critic"], CRITIC_RATE * rate)
        with precision.attention(self.backbone, self.job.settings.precision):
            for part in range(CRITIC_STEPS):
                self._train_critic(self._draw(train_step, part), train_step)
            loss = self._train_generator(self._draw(train_step, CRITIC_STEPS), train_step)
        return TrainStep(train_step, loss, rate)

    def trained(self) -> dict[str, tuple[adapters.State, LoraConfig]]:
        """The generator alone, under the job's name."""
        return {self.job.name: of_backbone(self.backbone, self.job.name)}

    def _draw(self, train_step: int, part: int) -> Draw:
        """The prompts and the random numbers of one optimiser step; they depend on the seed and the step alone."""
        settings, index = self.job.settings, train_step * (CRITIC_STEPS + 1) + part
        count = min(self.job.trajectories or len(self.trajectories), len(self.trajectories))
        ids = batches.items(count, settings.batch, settings.seed, index)
        shape = self.trajectories.states(ids, [0])[:, 0].shape
        random, device = batches.generator(settings.seed, "dmd2", index), self.backbone.device
        conditioning = self.trajectories.conditioning(ids)
        return Draw(
            Velocities(self.backbone, self.job, conditioning, self.negative, self.trajectories.recording),
            noise=lambda: torch.randn(shape, generator=random).to(device),
            level=lambda: torch.rand(len(ids), generator=random).to(device),
            steps=int(torch.randint(len(self.levels) - 1, (), generator=random)),
        )

    def _train_critic(self, draw: Draw, train_step: int) -> None:
        with torch.no_grad():
            x_0 = generated(draw.velocities.student(guided=True), draw.noise, self.levels, draw.steps)
        critic = draw.velocities.student(guided=False, adapter=self.critic)
        t = draw.level()
        losses = critic_loss(critic, x_0, draw.noise(), t)
        self._update("critic", losses, t, train_step)

    def _train_generator(self, draw: Draw, train_step: int) -> float:
        x_0 = generated(draw.velocities.student(guided=True), draw.noise, self.levels, draw.steps)
        low, high = LEVELS
        t = low + (high - low) * draw.level()
        y = flow.interpolate(x_0.detach(), draw.noise(), t)
        with torch.no_grad():
            v_fake = draw.velocities.student(guided=False, adapter=self.critic)(y, t)
        v_real = draw.velocities.teacher(y, t)
        draw.velocities.activate(self.job.name)
        losses = matching_loss(x_0, flow.x_0_from_velocity(y, v_fake, t), flow.x_0_from_velocity(y, v_real, t))
        return self._update("generator", losses, t, train_step)

    def _update(self, name: str, losses: Tensor, t: Tensor, train_step: int) -> float:
        check_finite(losses.detach(), t, train_step, self.job.name)
        loss, optimizer = losses.mean(), self.optimizers[name]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()


def generated(generator: Velocity, noise: Noise, levels: Sequence[float], steps: int) -> Tensor:
    """The generator's x_0 after `steps` steps of its own sampler from fresh noise: DMD2's backward simulation.

    Args:
        generator: Its velocity; a gradient flows through the last call alone.
        noise: Draws fresh noise, (B, T, C).
        levels: Its K noise levels, then 0.
        steps: k below K; the last call is at levels[k].
    """
    x = noise()
    with torch.no_grad():
        for sigma, sigma_next in pairwise(levels[: steps + 1]):
            step = Step(x, generator(x, x.new_full((len(x),), sigma)), sigma, sigma_next - sigma)
            x = renoise(step, None, noise)
    sigmas = x.new_full((len(x),), levels[steps])
    return flow.x_0_from_velocity(x, generator(x, sigmas), sigmas)


def matching_loss(x_0: Tensor, fake: Tensor, real: Tensor) -> Tensor:
    """|x_0 - sg(x_0 - g)|^2 / 2 of each row, with g = (D_F - D_T) / mean |x_0 - D_T|.

    The derivative of the mean over the rows by x_0 is g / (number of elements of x_0).

    Args:
        x_0: The generator's images, (B, T, C).
        fake: D_F, the critic's estimate of x_0 from a noised x_0; no gradient flows into it.
        real: D_T, the guided teacher's estimate from the same.
    """
    with torch.no_grad():
        scale = (x_0 - real).abs().flatten(1).mean(1) + SMALLEST
        g = (fake - real) / scale.reshape(-1, *[1] * (x_0.ndim - 1))
        target = x_0 - g
    return 0.5 * error(x_0, target)


def critic_loss(critic: Velocity, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """|v_F(y, t) - (noise - x_0)|^2 of each row, y = (1 - t) x_0 + t noise: flow matching on the generator's images."""
    return error(critic(flow.interpolate(x_0, noise, t), t), flow.velocity(x_0, noise))
