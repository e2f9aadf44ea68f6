"""Z-Image: the stock ZImagePipeline's steps, one at a time."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ZImagePipeline
from torch import Tensor

from pipeline.adapters.lora_names import Target
from pipeline.backbones.base import Conditioning, ForwardInputs
from pipeline.backbones.packing import pack, pad, unpack
from pipeline.backbones.stock import StockBackbone
from pipeline.flow.guidance import forwards

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
MLPS = ["w1", "w2", "w3"]
MODULATION = ["adaLN_modulation.0", "adaLN_modulation.1"]
EMBEDDERS = ["all_x_embedder.2-1", "cap_embedder.1", "mlp.0", "mlp.2", "all_final_layer.2-1.linear"]

LORA_NAMES = {  # names of the model's authors (ComfyUI's too), and "to.q" of trainers that put a dot for an underscore
    "x_embedder": Target(("all_x_embedder.2-1",)),
    "final_layer.linear": Target(("all_final_layer.2-1.linear",)),
    "final_layer.adaLN_modulation.1": Target(("all_final_layer.2-1.adaLN_modulation.1",)),
}
for blocks in ("layers.{}", "noise_refiner.{}", "context_refiner.{}"):
    attention = f"{blocks}.attention"
    LORA_NAMES[f"{attention}.qkv"] = Target(tuple(f"{attention}.to_{x}" for x in "qkv"))
    LORA_NAMES[f"{attention}.out"] = Target((f"{attention}.to_out.0",))
    LORA_NAMES |= {f"{attention}.to.{x}": Target((f"{attention}.to_{x}",)) for x in "qkv"}


class ZImageBackbone(StockBackbone):
    """Z-Image. Its `guidance_scale` w is a true CFG scale of 1 + w; its latents are summed in float32."""

    family = "z_image"
    lora_targets = {"attention": ATTENTION, "all": ATTENTION + MLPS + MODULATION + EMBEDDERS}
    pipeline_class = ZImagePipeline
    lora_names = LORA_NAMES
    part_modules = {"text": ("text_encoder", "tokenizer"), "transformer": ("transformer",), "vae": ("vae",)}

    @property
    def known_as(self) -> dict[str, str]:
        """The names of musubi-tuner."""
        return {
            "modelspec.architecture": "Z-Image/lora",
            "ss_base_model_version": "z_image",
            "ss_network_module": "networks.lora_zimage",
        }

    @property
    def pixels_per_token(self) -> int:
        """16 for Z-Image."""
        return 2 ** len(self.vae_config["block_out_channels"])

    @property
    def latent_channels(self) -> int:
        """64 for Z-Image, whose transformer packs its latents itself."""
        return 4 * self.transformer_config["in_channels"]

    @property
    def latent_dtype(self) -> torch.dtype:
        """float32, whatever the weights are."""
        return torch.float32

    @torch.no_grad()
    def encode(self, prompts: list[str], max_sequence_length: int) -> Conditioning:
        """Qwen3 states "prompt_embeds" (B, L, D), zeros behind a prompt, and "prompt_embeds_mask", bool (B, L)."""
        embeds, _ = self.part("text").encode_prompt(
            list(prompts), self.device, do_classifier_free_guidance=False, max_sequence_length=max_sequence_length
        )
        padded, mask = pad([row.cpu() for row in embeds], max_sequence_length)
        return {"prompt_embeds": padded, "prompt_embeds_mask": mask}

    def stock_guidance(self, true_cfg_scale: float, guidance_scale: float, negative_prompt: str) -> dict[str, Any]:
        """Z-Image's `guidance_scale` is true_cfg_scale - 1."""
        if forwards(true_cfg_scale) == 1:
            return {"guidance_scale": 0.0}
        return {"guidance_scale": true_cfg_scale - 1, "negative_prompt": negative_prompt}

    def _forward(self, inputs: ForwardInputs) -> Tensor:
        embeds, mask = inputs.conditioning["prompt_embeds"], inputs.conditioning["prompt_embeds_mask"]
        images = self.transformer(
            list(unpack(inputs.x, inputs.grid).unsqueeze(2)),  # (C, 1, h, w) each
            (1000 - inputs.timestep) / 1000,  # Z-Image's time is 1 - sigma, so its velocity is -v
            [row[kept] for row, kept in zip(embeds, mask, strict=True)],
            return_dict=False,
        )[0]
        return -pack(torch.stack([image.float() for image in images]).squeeze(2))

    def _encode(self, pixels: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        vae = self._pipe.vae
        found = vae.encode(pixels).latent_dist
        latents = torch.cat([found.sample(generator) for generator in generators])
        return (latents - vae.config.shift_factor) * vae.config.scaling_factor

    def _decode(self, latents: Tensor) -> Tensor:
        vae = self._pipe.vae
        return vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0]


BACKBONE = ZImageBackbone
