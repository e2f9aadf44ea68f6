"""Draws one picture along a plan, and reports each forward."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pipeline.backbones.base import Backbone, guided
from pipeline.demo.clock import Clock
from pipeline.demo.pictures import Drawn, Frame, Setting
from pipeline.flow import x_0_from_velocity
from pipeline.flow.guidance import Velocity, forwards
from pipeline.flow.sampling import StepPlan, sample_plan
from pipeline.flow.solvers import noise_seed

PREVIEW_S = 0.15  # seconds of drawing between two previews, besides those at the levels of the frames


def draw(
    backbone: Backbone,
    setting: Setting,
    plan: StepPlan,
    true_cfg_scale: float,
    select: Callable[[str | None], None],
    prompt: str,
    seed: int,
    wanted: Sequence[float] = (),
    tell: Callable[[Drawn], None] = lambda drawn: None,
) -> Drawn:
    """One picture: the same latents and the same decoding as `glance generate` with a batch of one.

    Args:
        backbone: The model, with all parts.
        setting: Size, text length and guidance.
        plan: The steps.
        true_cfg_scale: Above 1, a step takes two forwards.
        select: Activates an adapter of the plan.
        prompt: The text.
        seed: Of the noise.
        wanted: Noise levels; the frames are those of the nearest steps.
        tell: Is told of each forward; what `tell` raises ends the drawing.
    """
    guidance, size = setting.guidance, (setting.height, setting.width)
    total = (len(plan.sigmas) - 1) * forwards(true_cfg_scale)
    watch = _Watch(backbone, size, plan.sigmas.tolist(), wanted, Drawn(forwards=0, total=total), tell)
    tell(Drawn(forwards=0, total=total))
    with torch.inference_mode(), watch.clock.running():
        positive, negative = backbone.encode([prompt], setting.max_sequence_length), None
        if forwards(true_cfg_scale) == 2:
            negative = backbone.encode([guidance.negative_prompt], setting.max_sequence_length)
        velocity = guided(
            backbone,
            positive,
            negative,
            guidance_scale=guidance.guidance_scale,
            true_cfg_scale=true_cfg_scale,
            grid=backbone.grid(*size),
            model=watch.counted,
        )
        fresh = lambda step: backbone.noise([noise_seed(seed, step)], *size)  # noqa: E731
        x = sample_plan(watch.seen(velocity), backbone.noise([seed], *size), plan, select, fresh)
        return watch.finish(x)


class _Watch:
    """Counts the forwards of one drawing, and keeps what its frames are made from."""

    def __init__(
        self,
        backbone: Backbone,
        size: tuple[int, int],
        levels: Sequence[float],
        wanted: Sequence[float],
        start: Drawn,
        tell: Callable[[Drawn], None],
    ):
        self.clock = Clock(backbone.device)
        self._backbone, self._size, self._tell, self._drawn = backbone, size, tell, start
        self._levels = levels[:-1]
        self._steps = nearest(self._levels, wanted)
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}  # step -> x and the estimate of x_0
        self._step, self._previewed = 0, 0.0

    def counted(self, *inputs) -> Tensor:
        """The model's velocity, one forward."""
        v = self._backbone.velocity(*inputs)
        self._report(forwards=self._drawn.forwards + 1)
        return v

    def seen(self, velocity: Velocity) -> Velocity:
        """The same velocity, which shows the estimate of each step."""

        def step(x: Tensor, sigma: Tensor) -> Tensor:
            v = velocity(x, sigma)
            with self.clock.paused():
                estimate = x_0_from_velocity(x.float(), v.float(), sigma.float()).to(x.dtype)
                wanted, now = self._step in self._steps, self.clock.seconds
                if wanted:
                    self._kept[self._step] = x, estimate
                if wanted or now - self._previewed > PREVIEW_S:
                    self._previewed = now
                    self._report(image=self._decoded(estimate))
            self._step += 1
            return v

        return step

    def finish(self, x: Tensor) -> Drawn:
        """The picture of the last latents, with its frames."""
        image, seconds = self._decoded(x), self.clock.seconds
        self._report(image=image)  # the visitor need not wait for the frames
        frames = [self._frame(step) for step in self._steps]
        last = Frame(sigma=0.0, estimate=image, state=image)
        return replace(self._drawn, seconds=seconds, image=image, frames=(*frames, last))

    def _frame(self, step: int) -> Frame:
        x, estimate = map(self._decoded, self._kept[step])
        return Frame(sigma=self._levels[step], estimate=estimate, state=x)

    def _decoded(self, x: Tensor) -> np.ndarray:
        return self._backbone.decode(x, *self._size)[0].numpy()

    def _report(self, **changes) -> None:
        seconds = self.clock.seconds
        self._drawn = replace(self._drawn, seconds=seconds, **changes)
        self._tell(self._drawn)


def nearest(levels: Sequence[float], wanted: Sequence[float]) -> list[int]:
    """For each of the wanted noise levels, the number of the nearest of `levels`."""
    return [min(range(len(levels)), key=lambda step: abs(levels[step] - sigma)) for sigma in wanted]
