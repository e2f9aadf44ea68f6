"""Makes the images of an arm from one backbone. An image's bytes depend only on this module and its imports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline.backbones import base
from pipeline.backbones.base import Backbone, Conditioning
from pipeline.evaluation.weights import ArmWeights
from pipeline.flow import guidance, sampling, solvers

if TYPE_CHECKING:  # for types only: the list of arms changes no image
    from pipeline.evaluation.arms import Arm
    from pipeline.evaluation.samples import Shard

DECODED_AT_ONCE = 16  # images; with 64 the small VAE's activations exceed the CPU cache: 1/3 to 2/3 slower


@dataclass(frozen=True)
class Prompted:
    """Text conditioning of a batch; `negative` has one row, and is None for an unguided arm."""

    positive: Conditioning
    negative: Conditioning | None


class Sampler:
    """Makes images of any arm from one backbone, at one resolution."""

    def __init__(
        self,
        backbone: Backbone,
        weights: ArmWeights,
        height: int,
        width: int,
        max_sequence_length: int,
        guidance_scale: float,
        negative_prompt: str,
    ) -> None:
        """
        Args:
            backbone: The teacher, with its text encoders and decoder.
            weights: The arms' adapters on the backbone.
            height: Pixels.
            width: Pixels.
            max_sequence_length: Text tokens per prompt.
            guidance_scale: Embedded guidance of the arms that have none of their own.
            negative_prompt: What guided arms steer away from.
        """
        self.backbone = backbone
        self.weights = weights
        self.height, self.width = height, width
        self.max_sequence_length = max_sequence_length
        self.guidance_scale = guidance_scale
        self.negative_prompt = negative_prompt
        self.grid = backbone.grid(height, width)
        self._last: tuple[tuple[str, ...], Conditioning] | None = None
        self._negative: Conditioning | None = None

    def encode(self, arm: Arm, prompts: Sequence[str]) -> Prompted:
        """The conditioning of an arm's forwards; a guided arm also gets that of the negative prompt."""
        positive = self._encode(prompts)
        if guidance.forwards(arm.true_cfg_scale) == 1:
            return Prompted(positive, None)
        return Prompted(positive, self._encode([self.negative_prompt]))

    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        with torch.inference_mode():
            return self.backbone.encode(list(prompts), self.max_sequence_length)

    def _remembered(self, arm: Arm, prompts: tuple[str, ...]) -> Prompted:
        """As `encode`, but encodes a shard's prompts once for all arms, so that offloaded encoders are loaded once."""
        if self._last is None or self._last[0] != prompts:
            self._last = prompts, self._encode(prompts)
        if guidance.forwards(arm.true_cfg_scale) == 1:
            return Prompted(self._last[1], None)
        if self._negative is None:
            self._negative = self._encode([self.negative_prompt])
        return Prompted(self._last[1], self._negative)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Noise, (B, T, C); it depends on the seeds alone."""
        return self.backbone.noise(list(seeds), self.height, self.width)

    def denoise(self, arm: Arm, prompted: Prompted, seeds: Sequence[int]) -> Tensor:
        """The denoising loop of an arm from the noise of B seeds to latents (B, T, C).

        `weights` must hold the arm's adapters.
        """

        def fresh(step: int) -> Tensor:
            return self.noise([solvers.noise_seed(seed, step) for seed in seeds])

        with torch.inference_mode():
            velocity = base.guided(
                self.backbone,
                prompted.positive,
                prompted.negative,
                guidance_scale=self.guidance_scale if arm.guidance_scale is None else arm.guidance_scale,
                true_cfg_scale=arm.true_cfg_scale,
                grid=self.grid,
            )
            return sampling.sample_plan(velocity, self.noise(seeds), arm.plan, self.weights.select, fresh)

    def decode(self, x: Tensor) -> np.ndarray:
        """Latents to uint8 (B, H, W, 3)."""
        with torch.inference_mode():
            parts = [self.backbone.decode(part, self.height, self.width) for part in x.split(DECODED_AT_ONCE)]
            return torch.cat(parts).numpy()

    def images(self, arm: Arm, shard: Shard) -> np.ndarray:
        """A shard's images, uint8 (B, H, W, 3): a pure function of the arm, its adapters and the shard."""
        self.weights.hold(arm.plan.adapters)
        return self.decode(self.denoise(arm, self._remembered(arm, shard.prompts), shard.seeds))
