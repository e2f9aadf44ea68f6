"""FLUX.1: the stock FluxPipeline's steps, one at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isqrt
from pathlib import Path

import diffusers.utils.logging
import torch
import transformers.utils.logging
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from torch import Tensor

from pipeline import artifacts
from pipeline.backbones.base import Conditioning
from pipeline.schedule import Schedule

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT_ATTENTION = ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
MLPS = ["net.0.proj", "net.2", "proj_mlp", "proj_out"]  # proj_out is also the name of the output layer
MODULATION = ["norm1.linear", "norm1_context.linear", "norm.linear", "norm_out.linear"]
EMBEDDERS = ["x_embedder", "context_embedder", "linear_1", "linear_2"]


class FluxBackbone:
    """A backbone (see base.py) over a FluxPipeline directory.

    Args:
        path: The directory.
        device: Where the loaded parts lie.
        parts: Which of "text", "transformer" and "vae" to load.
        dtype: Of weights and latents.

    Raises:
        ValueError: A part is missing or does not fit its configuration.
        FileNotFoundError: A configuration file is missing.
    """

    family = "flux"
    lora_targets = {"attention": ATTENTION, "all": ATTENTION + TEXT_ATTENTION + MLPS + MODULATION + EMBEDDERS}

    def __init__(self, path: Path, device: torch.device, parts: Sequence[str], dtype: torch.dtype):
        self.device, self.dtype, self.parts = device, dtype, tuple(parts)
        self._path = path
        self._transformer_config = artifacts.read_json(path / "transformer" / "config.json")
        self._vae_config = artifacts.read_json(path / "vae" / "config.json")
        self._scheduler_config = artifacts.read_json(path / "scheduler" / "scheduler_config.json")
        self._pixels = 2 ** len(self._vae_config["block_out_channels"])  # per token: the decoder's scale, twice
        skipped = {name: None for part in PART_MODULES if part not in parts for name in PART_MODULES[part]}
        for part in parts:
            for name in PART_MODULES[part]:
                if not (path / name).is_dir():
                    raise ValueError(f"teacher: {path / name} does not exist")
        try:
            with _no_loading_bars():
                self._pipe = FluxPipeline.from_pretrained(str(path), dtype=dtype, local_files_only=True, **skipped)
        except (OSError, RuntimeError, KeyError) as error:
            raise ValueError(f"teacher: {path} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
        self._pipe.to(device)
        for module in (self._pipe.transformer, self._pipe.vae, self._pipe.text_encoder, self._pipe.text_encoder_2):
            if module is not None:
                module.requires_grad_(False).eval()

    @property
    def transformer(self) -> FluxTransformer2DModel:
        """Frozen and in eval mode. Raises ValueError when it was not loaded."""
        return self._part("transformer").transformer

    @property
    def pipeline(self) -> FluxPipeline:
        """The stock pipeline around the same modules; those of parts that were not loaded are None."""
        return self._pipe

    def schedule(self, height: int, width: int) -> Schedule:
        """The noise levels for images of height x width pixels."""
        return Schedule.from_scheduler_config(self._scheduler_config, self.latent_shape(height, width)[0])

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the tokens.

        Raises:
            ValueError: height or width is no positive multiple of the pixels of a token.
        """
        for name, pixels in (("height", height), ("width", width)):
            if pixels < 1 or pixels % self._pixels:
                raise ValueError(f"teacher.{name} must be a positive multiple of {self._pixels} pixels, got {pixels}")
        return height // self._pixels, width // self._pixels

    def latent_shape(self, height: int, width: int) -> tuple[int, int]:
        """(T, C) of one packed latent. Raises as grid does."""
        rows, columns = self.grid(height, width)
        return rows * columns, self._transformer_config["in_channels"]

    @torch.no_grad()
    def encode(self, prompts: list[str], max_sequence_length: int) -> Conditioning:
        """T5 states "prompt_embeds" (B, L, D) and the CLIP vector "pooled_prompt_embeds" (B, P), on the CPU."""
        embeds, pooled, _ = self._part("text").encode_prompt(
            prompt=list(prompts), prompt_2=None, device=self.device, max_sequence_length=max_sequence_length
        )
        return {"prompt_embeds": embeds.cpu(), "pooled_prompt_embeds": pooled.cpu()}

    def noise(self, seeds: Sequence[int], height: int, width: int) -> Tensor:
        """x at sigma = 1, shape (B, T, C): row i from torch.Generator("cpu").manual_seed(seeds[i])."""
        rows, columns = self.grid(height, width)
        shape = (1, self._transformer_config["in_channels"] // 4, 2 * rows, 2 * columns)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(int(s)), dtype=self.dtype) for s in seeds]
        return FluxPipeline._pack_latents(torch.cat(noise), len(noise), *shape[1:]).to(self.device)

    def velocity(
        self,
        x: Tensor,
        sigma: Tensor,
        conditioning: Conditioning,
        guidance_scale: float,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """v(x, sigma), shape (B, T, C) in x's dtype.

        Args:
            x: Latents, shape (B, T, C).
            sigma: Noise level of each, shape (B,).
            conditioning: As encode gives it, of B prompts.
            guidance_scale: Unused by a transformer without guidance_embeds.
            grid: (rows, columns) of the tokens; None = square.

        Raises:
            ValueError: T is not rows * columns, or no square where grid is None.
        """
        transformer = self.transformer
        rows, columns = grid or (isqrt(x.shape[1]),) * 2
        if rows * columns != x.shape[1]:
            raise ValueError(f"grid must be (rows, columns) of the {x.shape[1]} tokens, got {(rows, columns)}")
        embeds = conditioning["prompt_embeds"].to(self.device, self.dtype)
        pooled = conditioning["pooled_prompt_embeds"].to(self.device, self.dtype)
        # diffusers rounds the timestep, not sigma, to the latents' dtype
        timestep = (1000 * sigma.to(self.device, torch.float32)).to(self.dtype)
        guidance = None
        if self._transformer_config["guidance_embeds"]:
            guidance = torch.full((len(x),), guidance_scale, dtype=torch.float32, device=self.device)
        v = transformer(
            hidden_states=x.to(self.device, self.dtype),
            timestep=timestep / 1000,
            guidance=guidance,
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(embeds.shape[1], 3, dtype=self.dtype, device=self.device),
            img_ids=FluxPipeline._prepare_latent_image_ids(len(x), rows, columns, self.device, self.dtype),
            return_dict=False,
        )[0]
        return v.to(x.dtype)

    @torch.no_grad()
    def decode(self, x: Tensor, height: int, width: int) -> Tensor:
        """uint8 (B, height, width, 3) on the CPU: round(255 clamp(image / 2 + 1 / 2, 0, 1))."""
        vae: AutoencoderKL = self._part("vae").vae
        latents = FluxPipeline._unpack_latents(x.to(self.device, self.dtype), height, width, self._pixels // 2)
        image = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0]
        image = (image * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float()
        return (image * 255).round().to(torch.uint8).cpu()

    def _part(self, name: str) -> FluxPipeline:
        if name not in self.parts:
            raise ValueError(f"the part {name!r} was not loaded, only {', '.join(self.parts) or 'none'}")
        return self._pipe


PART_MODULES = {
    "text": ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    "transformer": ("transformer",),
    "vae": ("vae",),
}


@contextmanager
def _no_loading_bars() -> Iterator[None]:
    """Loading a teacher shows no progress bars of its own."""
    libraries = [transformers.utils.logging, diffusers.utils.logging]
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
