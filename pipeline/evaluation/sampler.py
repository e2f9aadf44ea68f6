"""Makes the images of an arm from one backbone. What this module imports is what the bytes of an image depend on."""

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
from pipeline.flow import guidance, sampling

if TYPE_CHECKING:  # which arms there are changes no image
    from pipeline.evaluation.arms import Arm
    from pipeline.evaluation.samples import Shard

DECODED_AT_ONCE = 16  # images; of 64 at once the small VAE's activations leave the cache: a third to two thirds slower


@dataclass(frozen=True)
class Prompted:
    """Text conditioning of a batch; `negative`, one row, only for a guided arm."""

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
            weights: The arms' adapters, fused into the backbone.
            height: Pixels.
            width: Pixels.
            max_sequence_length: Text tokens per prompt.
            guidance_scale: Embedded guidance.
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
        """The conditioning that an arm's forwards read, both texts for a guided arm."""
        positive = self._encode(prompts)
        if guidance.forwards(arm.true_cfg_scale) == 1:
            return Prompted(positive, None)
        return Prompted(positive, self._encode([self.negative_prompt]))

    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        with torch.inference_mode():
            return self.backbone.encode(list(prompts), self.max_sequence_length)

    def _remembered(self, arm: Arm, prompts: tuple[str, ...]) -> Prompted:
        """As `encode`, each text once for all arms that make the same shard: the encoders need not come back."""
        if self._last is None or self._last[0] != prompts:
            self._last = prompts, self._encode(prompts)
        if guidance.forwards(arm.true_cfg_scale) == 1:
            return Prompted(self._last[1], None)
        if self._negative is None:
            self._negative = self._encode([self.negative_prompt])
        return Prompted(self._last[1], self._negative)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Where the arms start, (B, T, C); depends on the seeds alone."""
        return self.backbone.noise(list(seeds), self.height, self.width)

    def denoise(self, arm: Arm, prompted: Prompted, noise: Tensor) -> Tensor:
        """The denoising loop of an arm whose adapters `weights` holds, (B, T, C) to (B, T, C)."""
        with torch.inference_mode():
            velocity = base.guided(
                self.backbone,
                prompted.positive,
                prompted.negative,
                guidance_scale=self.guidance_scale,
                true_cfg_scale=arm.true_cfg_scale,
                grid=self.grid,
            )
            return sampling.sample_plan(velocity, noise, arm.plan, self.weights.select)

    def decode(self, x: Tensor) -> np.ndarray:
        """Latents to uint8 (B, H, W, 3)."""
        with torch.inference_mode():
            parts = [self.backbone.decode(part, self.height, self.width) for part in x.split(DECODED_AT_ONCE)]
            return torch.cat(parts).numpy()

    def images(self, arm: Arm, shard: Shard) -> np.ndarray:
        """A shard's images, uint8 (B, H, W, 3): a pure function of the arm, its adapters and the shard."""
        self.weights.hold(arm.plan.adapters)
        return self.decode(self.denoise(arm, self._remembered(arm, shard.prompts), self.noise(shard.seeds)))
