"""Generates with a bundle: one batch of images or many, batch by batch, and what a picture says of its origin."""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from pipeline import image_files
from pipeline.adapters import switching
from pipeline.backbones.base import Backbone, guided
from pipeline.bundle.manifest import Bundle, bundle_digest
from pipeline.flow.guidance import forwards
from pipeline.flow.sampling import sample_plan


def generate(backbone: Backbone, bundle: Bundle, prompts: list[str], seeds: list[int], *, fused: bool = True) -> Tensor:
    """One image per prompt: K Euler steps, slow's adapter before the handoff and fast's after it.

    Args:
        backbone: The bundle's base, whole, with the bundle's LoRAs; it is left as it was.
        bundle: The pair.
        prompts: B texts.
        seeds: Of each image's noise, length B.
        fused: Put each phase's full weights in place (no low-rank path in a forward, a copy of the adapted weights
            per phase in memory); else run the low-rank products beside the layers.

    Returns:
        uint8 (B, height, width, 3), on the CPU.

    Raises:
        ValueError: There are not as many seeds as prompts, or an adapter names a module that the base lacks.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"every prompt needs a seed, got {len(prompts)} prompts and {len(seeds)} seeds")
    guidance, grid = bundle.guidance, backbone.grid(bundle.height, bundle.width)

    scale = guidance.student_true_cfg_scale
    conditioning, negative = backbone.encode(prompts, bundle.max_sequence_length), None
    if forwards(scale) == 2:
        negative = backbone.encode([guidance.negative_prompt], bundle.max_sequence_length)
    velocity = guided(
        backbone, conditioning, negative, guidance_scale=guidance.guidance_scale, true_cfg_scale=scale, grid=grid
    )

    noise = backbone.noise(seeds, bundle.height, bundle.width)
    with switching.acting(backbone.transformer, bundle.states(), fused=fused, home=backbone.home) as select:
        x = sample_plan(velocity, noise, bundle.plan(backbone), select)
    return backbone.decode(x, bundle.height, bundle.width)


def images(
    backbone: Backbone,
    bundle: Bundle,
    prompts: Sequence[str],
    seed: int = 0,
    batch: int = 8,
    skip: Collection[int] = (),
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (number, image) of each prompt in order; image i starts from the noise of seed + i.

    Prompts are batched by their numbers, whatever is skipped: an image's rounding depends on its batch, so an image is
    the same to the last bit whether all are made in one run or in two.

    Args:
        backbone: The bundle's base, as `generate` takes it.
        bundle: The pair.
        prompts: The texts.
        seed: Of the first image's noise.
        batch: How many images are made at once; no more are held in memory.
        skip: The numbers of images that are not wanted.

    Yields:
        The prompt's number and its image, uint8 (height, width, 3).

    Raises:
        ValueError: As `generate` does.
    """
    for first in range(0, len(prompts), batch):
        numbers = range(first, min(first + batch, len(prompts)))
        if all(number in skip for number in numbers):
            continue
        made = generate(
            backbone, bundle, [prompts[number] for number in numbers], [seed + number for number in numbers]
        )
        for number, image in zip(numbers, made.numpy(), strict=True):
            if number not in skip:
                yield number, image


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What an image is made of beside its prompt and seed."""

    bundle: str
    """Digest of the bundle's files."""
    base: str
    """Digest of the base's transformer and of the LoRAs that are fused into it."""
    model: str
    """Name of the base's folder."""
    quantization: str
    dtype: str
    path: str
    """How the latents move, one of `stepping.PATHS`."""
    steps: int
    nfe: int
    """Forwards per image."""
    true_cfg_scale: float
    guidance_scale: float
    negative_prompt: str
    height: int
    width: int

    @classmethod
    def of(cls, bundle: Bundle, quantization: str = "none") -> "Origin":
        """The origin of what a bundle makes on its own base."""
        guidance, steps = bundle.guidance, len(bundle.steps)
        return cls(
            bundle=bundle_digest(bundle.folder),
            base=bundle.base_digest,
            model=Path(bundle.base_model).name,
            quantization=quantization,
            dtype=bundle.dtype,
            path=bundle.path,
            steps=steps,
            nfe=steps * forwards(guidance.student_true_cfg_scale),
            true_cfg_scale=guidance.student_true_cfg_scale,
            guidance_scale=guidance.guidance_scale,
            negative_prompt=guidance.negative_prompt,
            height=bundle.height,
            width=bundle.width,
        )

    def texts(self, prompt: str, seed: int) -> dict[str, str]:
        """The text chunks of the image's PNG.

        `parameters` is what AUTOMATIC1111's web UI writes, and ComfyUI and galleries read. `glance` is JSON, with what
        the image depends on in full. What changes its rounding only (device, batch, compiling) is in neither, so the
        same text means the same picture.
        """
        settings = {
            "Steps": self.steps,
            "Sampler": "Euler",
            "CFG scale": self.true_cfg_scale,
            "Distilled CFG Scale": self.guidance_scale,
            "Seed": seed,
            "Size": f"{self.width}x{self.height}",
            "Model": _quoted(self.model),
            "Glance bundle": self.bundle.removeprefix("sha256:")[:12],
        }
        lines = [prompt, ", ".join(f"{name}: {value}" for name, value in settings.items())]
        if self.negative_prompt and self.nfe > self.steps:
            lines.insert(1, f"Negative prompt: {self.negative_prompt}")
        return {
            "parameters": "\n".join(lines),
            "glance": json.dumps({"prompt": prompt, "seed": seed, **asdict(self)}),
        }


def finished(origin: Origin, prompts: Sequence[str], seed: int, files: Sequence[Path]) -> set[int]:
    """The numbers of the prompts whose file is a whole picture of the same prompt, seed and origin."""
    return {
        number
        for number, (prompt, file) in enumerate(zip(prompts, files, strict=True))
        if image_files.texts(file).get("glance") == origin.texts(prompt, seed + number)["glance"]
    }


def _quoted(value: str) -> str:
    """A value of `parameters`, in quotes where it holds what separates the values."""
    return json.dumps(value) if any(mark in value for mark in ',:"\n') else value
