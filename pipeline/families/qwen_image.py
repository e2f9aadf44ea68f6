"""Qwen-Image: the stock QwenImagePipeline's steps, one at a time."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import QwenImagePipeline
from torch import Tensor

from pipeline.backbones.base import Conditioning, ForwardInputs
from pipeline.backbones.packing import pad
from pipeline.backbones.stock import StockBackbone, stock_true_cfg
from pipeline.flow.guidance import Velocity, true_cfg_norm_rescaled

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT_ATTENTION = ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
MLPS = ["net.0.proj", "net.2"]
MODULATION = ["img_mod.1", "txt_mod.1", "norm_out.linear"]
EMBEDDERS = ["img_in", "txt_in", "linear_1", "linear_2", "proj_out"]


class QwenImageBackbone(StockBackbone):
    """Qwen-Image: true CFG rescaled to the norm of the conditional velocity, and a stretched schedule."""

    family = "qwen_image"
    lora_targets = {"attention": ATTENTION, "all": ATTENTION + TEXT_ATTENTION + MLPS + MODULATION + EMBEDDERS}
    pipeline_class = QwenImagePipeline
    part_modules = {"text": ("text_encoder", "tokenizer"), "transformer": ("transformer",), "vae": ("vae",)}

    @property
    def known_as(self) -> dict[str, str]:
        """The names of musubi-tuner."""
        return {
            "modelspec.architecture": "Qwen-Image/lora",
            "ss_base_model_version": "qwen_image",
            "ss_network_module": "networks.lora_qwen_image",
        }

    @property
    def pixels_per_token(self) -> int:
        """16 for Qwen-Image."""
        return 2 * 2 ** len(self.vae_config["temperal_downsample"])

    @torch.no_grad()
    def encode(self, prompts: list[str], max_sequence_length: int) -> Conditioning:
        """Qwen2.5-VL states "prompt_embeds" (B, L, D), zeros behind a prompt, and "prompt_embeds_mask", bool (B, L)."""
        pipe = self.part("text")
        embeds, mask = pipe._get_qwen_prompt_embeds(list(prompts), self.device)
        lengths = mask.sum(1).clamp(max=max_sequence_length).tolist()
        rows = [row[:length].cpu() for row, length in zip(embeds, lengths, strict=True)]
        embeds, mask = pad(rows, max_sequence_length)
        return {"prompt_embeds": embeds, "prompt_embeds_mask": mask}

    def guide(self, cond: Velocity, uncond: Velocity, scale: float) -> Velocity:
        """True CFG at the norm of the conditional velocity."""
        return true_cfg_norm_rescaled(cond, uncond, scale)

    def stock_guidance(self, true_cfg_scale: float, guidance_scale: float, negative_prompt: str) -> dict[str, Any]:
        """`true_cfg_scale` alone, unless the transformer has embedded guidance."""
        embedded = {"guidance_scale": guidance_scale} if self.transformer_config.get("guidance_embeds") else {}
        return embedded | (stock_true_cfg(true_cfg_scale, negative_prompt) or {"true_cfg_scale": 1.0})

    def _forward(self, inputs: ForwardInputs) -> Tensor:
        mask = inputs.conditioning["prompt_embeds_mask"]
        mask = mask[:, : int(mask.sum(1).max())]  # no row of the batch is longer
        return self.transformer(
            hidden_states=inputs.x,
            timestep=inputs.timestep.to(inputs.x.dtype) / 1000,
            guidance=inputs.guidance,
            encoder_hidden_states=inputs.conditioning["prompt_embeds"][:, : mask.shape[1]],
            encoder_hidden_states_mask=None if mask.all() else mask,
            img_shapes=[[(1, *inputs.grid)]] * len(inputs.x),
            return_dict=False,
        )[0]

    def _encode(self, pixels: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        found = self._pipe.vae.encode(pixels[:, :, None]).latent_dist
        latents = torch.cat([found.sample(generator) for generator in generators])
        mean, std = self._moments(latents)
        return ((latents - mean) * (1 / std))[:, :, 0]

    def _decode(self, latents: Tensor) -> Tensor:
        mean, std = self._moments(latents)
        return self._pipe.vae.decode(latents[:, :, None] / (1 / std) + mean, return_dict=False)[0][:, :, 0]

    def _moments(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the autoencoder's channels, (1, C, 1, 1, 1) each, for latents (B, C, ...)."""
        config = self._pipe.vae.config
        mean, std = (
            torch.tensor(values, dtype=latents.dtype, device=latents.device)[None, :, None, None, None]
            for values in (config.latents_mean, config.latents_std)
        )
        return mean, std


BACKBONE = QwenImageBackbone
