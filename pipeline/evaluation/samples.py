"""The images of every arm, made shard by shard and kept on disk, so that memory does not grow with the prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load
from torch import Tensor

from pipeline import artifacts, guidance, sampling
from pipeline.backbones import base
from pipeline.backbones.base import Backbone, Conditioning
from pipeline.evaluation.arms import Arm
from pipeline.evaluation.weights import ArmWeights

DECODED_AT_ONCE = 16  # images; of 64 at once the small VAE's activations leave the cache: a third to two thirds slower


@dataclass(frozen=True)
class Shard:
    """Prompts and seeds of images made together; row i is prompts[i] from the noise of seeds[i]."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]


def shards(prompts: Sequence[str], seeds: Sequence[int], size: int) -> list[Shard]:
    """Cuts prompts and their seeds into shards of `size`, the last one what is left."""
    rows = list(zip(prompts, seeds, strict=True))
    return [Shard(*map(tuple, zip(*rows[i : i + size], strict=True))) for i in range(0, len(rows), size)]


Images = Callable[[Arm, Shard], np.ndarray]
"""A shard's images of an arm, uint8 (B, H, W, 3)."""


def pick(images: Images, arm: Arm, among: Sequence[Shard], indices: Sequence[int]) -> list[np.ndarray]:
    """The images of single prompts, uint8 (H, W, 3) each, in the order of `indices` into the prompts of `among`."""
    starts = np.cumsum([0, *(len(shard.prompts) for shard in among)])
    places = [int(np.searchsorted(starts, index, side="right")) - 1 for index in indices]
    found: dict[int, np.ndarray] = {}
    for place in sorted(set(places)):
        made = images(arm, among[place])
        found |= {i: made[i - starts[place]].copy() for i, p in zip(indices, places, strict=True) if p == place}
    return [found[index] for index in indices]


@dataclass(frozen=True)
class Prompted:
    """Text conditioning of a batch; `negative` only for a guided arm."""

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
        return Prompted(positive, base.repeat(self._encode([self.negative_prompt]), len(prompts)))

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
        return Prompted(self._last[1], base.repeat(self._negative, len(prompts)))

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Where the arms start, (B, T, C); depends on the seeds alone."""
        return self.backbone.noise(list(seeds), self.height, self.width)

    def denoise(self, arm: Arm, prompted: Prompted, noise: Tensor) -> Tensor:
        """The denoising loop of an arm whose adapters `weights` holds, (B, T, C) to (B, T, C)."""
        with torch.inference_mode():
            velocity = base.field(self.backbone, prompted.positive, self.guidance_scale, self.grid)
            if prompted.negative is not None:
                unguided = base.field(self.backbone, prompted.negative, self.guidance_scale, self.grid)
                velocity = self.backbone.guide(velocity, unguided, arm.true_cfg_scale)
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


class Store:
    """Images on disk, one file for a shard of an arm, named by what its content depends on.

    A file is written whole, so an evaluation that was killed continues after its last shard; and images of the bare
    backbone are found again by an evaluation of other adapters.
    """

    def __init__(
        self,
        make: Images,
        origin: Mapping,
        adapter_digests: Mapping[str, str],
        lasting: Path,
        passing: Path,
    ) -> None:
        """
        Args:
            make: Makes a shard's images.
            origin: What images of the bare backbone depend on besides the arm and the shard, in JSON's types.
            adapter_digests: Digest of each adapter's weights.
            lasting: Folder of the images of arms without adapters, which other evaluations can use.
            passing: Folder of the other images, of use only until this evaluation is done.
        """
        self.make = make
        self.origin = origin
        self.adapter_digests = adapter_digests
        self.lasting, self.passing = lasting, passing

    def path(self, arm: Arm, shard: Shard) -> Path:
        """Where a shard's images are, or will be."""
        used = sorted({name for name in arm.plan.adapters if name is not None})
        content = {
            "origin": self.origin,
            "sigmas": arm.plan.sigmas.tolist(),
            "d_sigmas": arm.plan.d_sigmas,
            "adapters": [self.adapter_digests[name] if name else None for name in arm.plan.adapters],
            "true_cfg_scale": arm.true_cfg_scale,
            "prompts": shard.prompts,
            "seeds": shard.seeds,
        }
        return (self.passing if used else self.lasting) / f"{artifacts.digest_of(content)}.safetensors"

    def images(self, arm: Arm, shard: Shard) -> np.ndarray:
        """A shard's images, uint8 (B, H, W, 3), from disk if they are there; an unreadable file is made again."""
        path = self.path(arm, shard)
        try:
            return load(path.read_bytes())["images"]
        except (FileNotFoundError, SafetensorError):
            images = self.make(arm, shard)
        artifacts.save_safetensors(path, {"images": torch.from_numpy(np.ascontiguousarray(images))})
        return images
