"""What the pipeline asks of a model family."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from pipeline.flow.guidance import SteeredGuidance, Velocity, forwards
from pipeline.flow.schedule import Schedule

Conditioning = dict[str, Tensor]
"""What a transformer reads of a prompt: named tensors whose first dimension is the batch."""


@dataclass(frozen=True)
class ForwardInputs:
    """What one forward of a transformer reads, on its device and in its dtype."""

    x: Tensor
    """Latents, shape (B, T, C)."""
    timestep: Tensor
    """1000 sigma, shape (B,), float32."""
    conditioning: Conditioning
    guidance: Tensor | None
    """The embedded guidance scale, shape (B,), float32; None for a transformer without it."""
    grid: tuple[int, int]
    """(rows, columns) of the tokens."""


class Backbone(Protocol):
    """A frozen flow-matching transformer with its text encoders and its decoder.

    Latents are packed: x has shape (B, T, C) with T tokens of C channels. Arguments may lie on any device. Results lie
    on the backbone's device, but conditionings and images lie on the CPU.
    """

    family: ClassVar[str]
    dtype: torch.dtype
    device: torch.device
    home: torch.device
    """The device that keeps inactive weights: `device` itself, or the CPU for a backbone that offloads."""
    lora_targets: ClassVar[dict[str, list[str]]]
    """Module name suffixes by set: "attention" (the projections of the image stream), "all" (every linear layer)."""

    @property
    def transformer(self) -> nn.Module:
        """Frozen and in eval mode. Adapters are injected into it."""

    def schedule(self, height: int, width: int) -> Schedule:
        """The noise levels of the model's own scheduler for images of height x width pixels."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int]:
        """(T, C) of one packed latent. Raises ValueError when the pixels do not divide into tokens."""

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the tokens of an image; rows * columns = T."""

    def check_files(self, parts: Sequence[str]) -> None:
        """Raises ValueError unless the folders of these parts are there, each with whole files of weights."""

    def words(self) -> list[str]:
        """Words of lower-case letters that have a token of their own in a text encoder, sorted."""

    def encode(self, prompts: list[str], max_sequence_length: int) -> Conditioning:
        """The conditioning of prompts, on the CPU."""

    def noise(self, seeds: Sequence[int], height: int, width: int) -> Tensor:
        """x at sigma = 1, shape (B, T, C): row i depends on seeds[i] alone, and is drawn on the CPU."""

    def encode_image(self, image: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The latents of an image and the noise to add to them, a row of each per seed.

        Row i depends on the image and seeds[i] alone. Both come from one generator on the CPU: first the draw of the
        autoencoder's latents, then the noise. So the noise is another one than that of `noise`.

        Args:
            image: uint8 (height, width, 3). Raises ValueError when the pixels do not divide into tokens.
            seeds: B seeds.

        Returns:
            x at sigma = 0 and x at sigma = 1, shape (B, T, C) each.
        """

    def velocity(
        self,
        x: Tensor,
        sigma: Tensor,
        conditioning: Conditioning,
        guidance_scale: float,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """v(x, sigma) of the transformer, shape (B, T, C) in x's dtype.

        Args:
            x: Latents, shape (B, T, C).
            sigma: Noise level of each row, shape (B,).
            conditioning: Conditioning of B prompts.
            guidance_scale: Embedded guidance; unused by a transformer without it.
            grid: (rows, columns) of the tokens; None = square. Raises ValueError when T does not agree.
        """

    def guide(self, cond: Velocity, uncond: Velocity, scale: float) -> Velocity:
        """True CFG as the model's own pipeline does it; at scale 1 or below, `cond` itself."""

    def stock_guidance(self, true_cfg_scale: float, guidance_scale: float, negative_prompt: str) -> dict[str, Any]:
        """Keyword arguments that give a call of the model's own pipeline this guidance."""

    def decode(self, x: Tensor, height: int, width: int) -> Tensor:
        """The images of latents at sigma = 0: uint8 (B, height, width, 3) on the CPU, rounded as diffusers does."""


def guided(
    backbone: Backbone,
    conditioning: Conditioning,
    negative: Conditioning | None,
    *,
    guidance_scale: float,
    true_cfg_scale: float,
    grid: tuple[int, int] | None = None,
    model: Callable[..., Tensor] | None = None,
) -> Velocity:
    """The backbone as a velocity of x and sigma under B prompts, with true CFG as its own pipeline does it.

    Args:
        backbone: The model.
        conditioning: Conditioning of the prompts, B rows.
        negative: Conditioning of the negative prompt, one row; unused at true_cfg_scale 1, one forward per step.
        guidance_scale: The embedded guidance.
        true_cfg_scale: Above 1, a step takes a second forward, under the negative prompt.
        grid: (rows, columns) of the tokens; None = square.
        model: Replaces `backbone.velocity` and takes the same arguments, such as the model with an adapter.

    Raises:
        ValueError: A guided step needs `negative`, which is None.
    """
    forward = model or backbone.velocity

    def under(prompts: Conditioning) -> Velocity:
        prompts = move(prompts, backbone.device)
        return lambda x, sigma: forward(x, sigma, prompts, guidance_scale, grid)

    if forwards(true_cfg_scale) == 1:
        return under(conditioning)
    if negative is None:
        raise ValueError(f"true_cfg_scale {true_cfg_scale} needs the conditioning of a negative prompt, got none")
    count = len(next(iter(conditioning.values())))
    uncond = under(repeat(negative, count))
    return SteeredGuidance(under(conditioning), lambda cond: backbone.guide(cond, uncond, true_cfg_scale))


def index(conditioning: Conditioning, ids: Sequence[int] | Tensor) -> Conditioning:
    """The rows `ids` of a conditioning, in that order."""
    ids = torch.as_tensor(ids, dtype=torch.long)
    return {name: tensor[ids.to(tensor.device)] for name, tensor in conditioning.items()}


def repeat(conditioning: Conditioning, count: int) -> Conditioning:
    """Each row `count` times in succession: (B, ...) -> (B * count, ...)."""
    return {name: tensor.repeat_interleave(count, dim=0) for name, tensor in conditioning.items()}


def concat(*conditionings: Conditioning) -> Conditioning:
    """The rows of several conditionings, one after the other. Raises ValueError when their names differ."""
    names = conditionings[0].keys()
    for other in conditionings[1:]:
        if other.keys() != names:
            raise ValueError(f"conditionings must have the same names, got {sorted(names)} and {sorted(other)}")
    return {name: torch.cat([conditioning[name] for conditioning in conditionings]) for name in names}


def move(conditioning: Conditioning, device: torch.device | str) -> Conditioning:
    """The same conditioning on `device`."""
    return {name: tensor.to(device) for name, tensor in conditioning.items()}
