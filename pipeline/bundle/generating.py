"""Generates images with a bundle, batch by batch, and writes the origin of each image into its PNG text."""

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
from pipeline.bundle.source import Source
from pipeline.flow import stepping
from pipeline.flow.guidance import forwards
from pipeline.flow.sampling import sample_plan
from pipeline.flow.solvers import noise_seed


def generate(
    backbone: Backbone,
    bundle: Bundle,
    prompts: list[str],
    seeds: list[int],
    *,
    fused: bool | None = None,
    source: Source | None = None,
) -> Tensor:
    """One image per prompt: K Euler steps, each with the adapter of its noise level.

    Args:
        backbone: The whole base of the bundle, with the bundle's LoRAs; it is left unchanged.
        bundle: The adapters.
        prompts: B texts.
        seeds: The seed of each image's noise, length B.
        fused: Whether to put full weights in place for each phase (one more copy of the adapted weights per phase), or
            to run the low-rank products beside the layers; None = as the type of the base's weights says, see
            `switching.fuses`.
        source: A picture to start from, of the bundle's size; None = start from noise.

    Returns:
        uint8 (B, height, width, 3), on the CPU.

    Raises:
        ValueError: There are not as many seeds as prompts, an adapter names a module that the base lacks, or the path
            of the bundle takes no picture.
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

    def noise(step: int) -> Tensor:
        return backbone.noise([noise_seed(seed, step) for seed in seeds], bundle.height, bundle.width)

    plan, hold = bundle.plan(backbone, source.strength if source else None), None
    if source:
        start, hold = source.enter(backbone, seeds, float(plan.sigmas[0]))
    else:
        start = backbone.noise(seeds, bundle.height, bundle.width)
    with switching.acting(backbone.transformer, bundle.states(), fused=fused, home=backbone.home) as select:
        x = sample_plan(velocity, start, plan, select, noise, hold)
    return backbone.decode(x, bundle.height, bundle.width)


def images(
    backbone: Backbone,
    bundle: Bundle,
    prompts: Sequence[str],
    seed: int = 0,
    batch: int = 8,
    skip: Collection[int] = (),
    source: Source | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (number, image) for each prompt in order; image i starts from the noise of seed + i.

    Skipped prompts do not change the batches of the others, since the rounding of an image depends on its batch. So an
    image is the same to the last bit, whether one run makes all images or two runs do.

    Args:
        backbone: The bundle's base, as `generate` takes it.
        bundle: The adapters.
        prompts: The texts.
        seed: The seed of the first image's noise.
        batch: How many images are made and held in memory at once.
        skip: The numbers of images to leave out.
        source: A picture that every image starts from; None = noise.

    Yields:
        The prompt's number and its image, uint8 (height, width, 3).

    Raises:
        ValueError: As `generate` does.
    """
    for first in range(0, len(prompts), batch):
        numbers = range(first, min(first + batch, len(prompts)))
        if all(number in skip for number in numbers):
            continue
        texts, seeds = [prompts[number] for number in numbers], [seed + number for number in numbers]
        made = generate(backbone, bundle, texts, seeds, source=source)
        for number, image in zip(numbers, made.numpy(), strict=True):
            if number not in skip:
                yield number, image


SAMPLERS = {"euler": "Euler", "ab2": "Adams-Bashforth 2", "dpm2m": "DPM++ 2M", "renoise": "LCM"}
"""What image files call a solver."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What an image depends on besides its prompt and seed."""

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
    solver: str
    """One of `solvers.SOLVERS`."""
    steps: int
    nfe: int
    """Forwards per image: of the steps that a strength leaves."""
    true_cfg_scale: float
    guidance_scale: float
    negative_prompt: str
    height: int
    width: int
    strength: float | None = None
    """The share of the steps that run, from the picture `image`; None = all, from noise, and there is no picture."""
    image: str | None = None
    """Digest of the picture's file."""
    mask: str | None = None
    """Digest of the mask's file."""

    @classmethod
    def of(cls, bundle: Bundle, quantization: str = "none", source: Source | None = None) -> "Origin":
        """The origin of images that a bundle makes on its own base, from noise or from a picture."""
        guidance, steps = bundle.guidance, len(bundle.steps)
        first = stepping.first_step(bundle.path, steps, source.strength) if source else 0
        return cls(
            bundle=bundle_digest(bundle.folder),
            base=bundle.base_digest,
            model=Path(bundle.base_model).name,
            quantization=quantization,
            dtype=bundle.dtype,
            path=bundle.path,
            solver=bundle.solver,
            steps=steps,
            nfe=(steps - first) * forwards(guidance.student_true_cfg_scale),
            true_cfg_scale=guidance.student_true_cfg_scale,
            guidance_scale=guidance.guidance_scale,
            negative_prompt=guidance.negative_prompt,
            height=bundle.height,
            width=bundle.width,
            strength=source.strength if source else None,
            image=source.digest if source else None,
            mask=source.mask_digest if source else None,
        )

    def texts(self, prompt: str, seed: int) -> dict[str, str]:
        """The text chunks of the image's PNG.

        `parameters` has the format that AUTOMATIC1111's web UI writes, and that ComfyUI and galleries read. `glance` is
        JSON with all that the image depends on; an image from noise has no keys for a picture. Device, batch and
        compiling change only its rounding and are in neither chunk, so the same text means the same picture.
        """
        settings = {
            "Steps": self.steps,
            "Sampler": SAMPLERS[self.solver],
            "CFG scale": self.true_cfg_scale,
            "Distilled CFG Scale": self.guidance_scale,
            "Seed": seed,
            "Size": f"{self.width}x{self.height}",
            "Model": _quoted(self.model),
            "Glance bundle": self.bundle.removeprefix("sha256:")[:12],
        }
        if self.strength is not None:
            settings["Denoising strength"] = self.strength
        lines = [prompt, ", ".join(f"{name}: {value}" for name, value in settings.items())]
        if self.negative_prompt and forwards(self.true_cfg_scale) == 2:
            lines.insert(1, f"Negative prompt: {self.negative_prompt}")
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return {
            "parameters": "\n".join(lines),
            "glance": json.dumps({"prompt": prompt, "seed": seed, **known}),
        }


def finished(origin: Origin, prompts: Sequence[str], seed: int, files: Sequence[Path]) -> set[int]:
    """The numbers of the prompts whose file is already a whole image of the same prompt, seed and origin."""
    return {
        number
        for number, (prompt, file) in enumerate(zip(prompts, files, strict=True))
        if image_files.texts(file).get("glance") == origin.texts(prompt, seed + number)["glance"]
    }


def _quoted(value: str) -> str:
    """A value of `parameters`, in quotes if it holds a separator."""
    return json.dumps(value) if any(mark in value for mark in ',:"\n') else value
