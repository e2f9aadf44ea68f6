"""The two velocities that an objective may call in a train step: the student's and the teacher's."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline import adapters
from pipeline.adapters import switching
from pipeline.backbones import precision
from pipeline.backbones.base import Backbone, Conditioning, guided
from pipeline.flow.guidance import Velocity
from pipeline.recording.trajectories import Recording
from pipeline.training.jobs import Job


class Velocities:
    """Student and teacher under the prompts of one batch; their velocities are float32 in every precision.

    Args:
        backbone: Carries the adapter of `job`.
        job: What is trained.
        conditioning: Conditioning of the batch's prompts, B rows.
        negative: Conditioning of the negative prompt, one row.
        recording: How the teacher was run.
    """

    def __init__(
        self, backbone: Backbone, job: Job, conditioning: Conditioning, negative: Conditioning, recording: Recording
    ):
        self._backbone, self._job, self._recording = backbone, job, recording
        self._conditioning, self._negative = conditioning, negative
        self._grid = backbone.grid(recording.height, recording.width)
        self._active = job.name

    def student(self, *, guided: bool, adapter: str | None = None) -> Velocity:
        """The backbone with an adapter as it is now: at the job's true_cfg_scale if `guided`, else the prompts alone.

        `adapter` is the job's own unless another is named. It is active, and trains, from now on; others that train
        go on training.
        """
        self._active = name = adapter or self._job.name
        scale = self._job.true_cfg_scale if guided else 1.0
        velocity = self._guided(with_adapter(self._backbone, name), self._job.guidance_scale, scale)

        def student(x: Tensor, sigma: Tensor) -> Tensor:
            with precision.computing(self._backbone, self._job.settings.precision):
                return velocity(x, sigma).float()

        return student

    @torch.no_grad()
    def teacher(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The velocity of the bare backbone, guided as in the recording; no gradients flow into it."""
        velocity = self._guided(self._backbone.velocity, self._recording.guidance_scale, self._recording.true_cfg_scale)
        _select(self._backbone, None)
        with precision.computing(self._backbone, self._job.settings.precision):
            v = velocity(x, sigma).float()
        _select(self._backbone, self._active)
        return v

    def activate(self, adapter: str) -> None:
        """Makes an adapter active; gradient checkpointing needs that of the forward in the backward too."""
        self._active = adapter
        _select(self._backbone, adapter)

    def _guided(self, model: Callable[..., Tensor], guidance_scale: float, true_cfg_scale: float) -> Velocity:
        return guided(
            self._backbone,
            self._conditioning,
            self._negative,
            guidance_scale=guidance_scale,
            true_cfg_scale=true_cfg_scale,
            grid=self._grid,
            model=model,
        )


def with_adapter(backbone: Backbone, name: str) -> Callable[..., Tensor]:
    """The backbone's velocity with an adapter, which trains from now on."""
    _select(backbone, name)
    if not _merges(backbone):
        return backbone.velocity
    model = _Model(backbone)
    weights = {f"transformer.{key}": value for key, value in adapters.merged_weights(model.transformer, name).items()}
    return lambda *args: torch.func.functional_call(model, weights, args)


class _Model(nn.Module):
    """A backbone's velocity as a module's forward, for `functional_call`."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.transformer = backbone.transformer
        self._velocity = backbone.velocity

    def forward(self, *args):
        return self._velocity(*args)


def _merges(backbone: Backbone) -> bool:
    """Whether the student runs with merged weights, as on a float32 transformer.

    In 16 bits a small delta would be lost in W + B A, and a large transformer would hold a gradient per weight. So
    peft's low-rank path serves there, for quantised weights and under gradient checkpointing.
    """
    checkpointing = backbone.transformer.is_gradient_checkpointing  # runs a block again, without the merged weights
    return not checkpointing and switching.fuses(backbone.transformer)


def _select(backbone: Backbone, name: str | None) -> None:
    """Makes an adapter trainable, and active unless its weights are merged; None = the bare backbone is active."""
    transformer = backbone.transformer
    training = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    if name is not None:
        training += adapters.parameters(transformer, name)
    adapters.select(transformer, None if _merges(backbone) else name)
    for parameter in training:  # peft freezes what is not selected
        parameter.requires_grad_(True)
