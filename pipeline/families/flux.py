"""FLUX.1: the stock FluxPipeline's steps, one at a time."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import Tensor

from pipeline.adapters.lora_names import Target
from pipeline.backbones.base import Conditioning, ForwardInputs
from pipeline.backbones.stock import StockBackbone, stock_true_cfg

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT_ATTENTION = ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
MLPS = ["net.0.proj", "net.2", "proj_mlp", "proj_out"]  # proj_out is also the name of the output layer
MODULATION = ["norm1.linear", "norm1_context.linear", "norm.linear", "norm_out.linear"]
EMBEDDERS = ["x_embedder", "context_embedder", "linear_1", "linear_2"]

BLOCK, SINGLE, EMBED = "transformer_blocks.{}", "single_transformer_blocks.{}", "time_text_embed"
IMAGE_QKV = Target((f"{BLOCK}.attn.to_q", f"{BLOCK}.attn.to_k", f"{BLOCK}.attn.to_v"))
TEXT_QKV = Target((f"{BLOCK}.attn.add_q_proj", f"{BLOCK}.attn.add_k_proj", f"{BLOCK}.attn.add_v_proj"))
SINGLE_QKV = (f"{SINGLE}.attn.to_q", f"{SINGLE}.attn.to_k", f"{SINGLE}.attn.to_v")
LORA_NAMES = {
    # names of the model's authors, which kohya and ComfyUI use
    "img_in": Target(("x_embedder",)),
    "txt_in": Target(("context_embedder",)),
    "time_in.in_layer": Target((f"{EMBED}.timestep_embedder.linear_1",)),
    "time_in.out_layer": Target((f"{EMBED}.timestep_embedder.linear_2",)),
    "vector_in.in_layer": Target((f"{EMBED}.text_embedder.linear_1",)),
    "vector_in.out_layer": Target((f"{EMBED}.text_embedder.linear_2",)),
    "guidance_in.in_layer": Target((f"{EMBED}.guidance_embedder.linear_1",)),
    "guidance_in.out_layer": Target((f"{EMBED}.guidance_embedder.linear_2",)),
    "double_blocks.{}.img_attn.qkv": IMAGE_QKV,
    "double_blocks.{}.img_attn.proj": Target((f"{BLOCK}.attn.to_out.0",)),
    "double_blocks.{}.img_mlp.0": Target((f"{BLOCK}.ff.net.0.proj",)),
    "double_blocks.{}.img_mlp.2": Target((f"{BLOCK}.ff.net.2",)),
    "double_blocks.{}.img_mod.lin": Target((f"{BLOCK}.norm1.linear",)),
    "double_blocks.{}.txt_attn.qkv": TEXT_QKV,
    "double_blocks.{}.txt_attn.proj": Target((f"{BLOCK}.attn.to_add_out",)),
    "double_blocks.{}.txt_mlp.0": Target((f"{BLOCK}.ff_context.net.0.proj",)),
    "double_blocks.{}.txt_mlp.2": Target((f"{BLOCK}.ff_context.net.2",)),
    "double_blocks.{}.txt_mod.lin": Target((f"{BLOCK}.norm1_context.linear",)),
    "single_blocks.{}.linear1": Target((*SINGLE_QKV, f"{SINGLE}.proj_mlp")),
    "single_blocks.{}.linear2": Target((f"{SINGLE}.proj_out",)),
    "single_blocks.{}.modulation.lin": Target((f"{SINGLE}.norm.linear",)),
    "final_layer.linear": Target(("proj_out",)),
    "final_layer.adaLN_modulation.1": Target(("norm_out.linear",), halves_swapped=True),  # shift first, scale second
    # names of XLabs, for the attention of both streams and for the first rows of linear1
    "double_blocks.{}.processor.qkv_lora1": IMAGE_QKV,
    "double_blocks.{}.processor.proj_lora1": Target((f"{BLOCK}.attn.to_out.0",)),
    "double_blocks.{}.processor.qkv_lora2": TEXT_QKV,
    "double_blocks.{}.processor.proj_lora2": Target((f"{BLOCK}.attn.to_add_out",)),
    "single_blocks.{}.processor.qkv_lora": Target(SINGLE_QKV),
    "single_blocks.{}.processor.proj_lora": Target((f"{SINGLE}.proj_out",)),
}


class FluxBackbone(StockBackbone):
    """FLUX.1, with embedded guidance (dev) or without."""

    family = "flux"
    lora_targets = {"attention": ATTENTION, "all": ATTENTION + TEXT_ATTENTION + MLPS + MODULATION + EMBEDDERS}
    pipeline_class = FluxPipeline
    part_modules = {
        "text": ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
        "transformer": ("transformer",),
        "vae": ("vae",),
    }
    tokenizer = "tokenizer_2"
    lora_names = LORA_NAMES

    @property
    def known_as(self) -> dict[str, str]:
        """The names of kohya's sd-scripts; dev is the model with embedded guidance."""
        architecture = "flux-1-dev" if self.transformer_config.get("guidance_embeds") else "flux-1"
        return {
            "modelspec.architecture": f"{architecture}/lora",
            "ss_base_model_version": "flux1",
            "ss_network_module": "networks.lora_flux",
        }

    @property
    def pixels_per_token(self) -> int:
        """16 for FLUX.1."""
        return 2 ** len(self.vae_config["block_out_channels"])

    @torch.no_grad()
    def encode(self, prompts: list[str], max_sequence_length: int) -> Conditioning:
        """T5 states "prompt_embeds" (B, L, D) and the CLIP vector "pooled_prompt_embeds" (B, P), on the CPU."""
        pipe = self.part("text")
        lengths = pipe.tokenizer_max_length, max_sequence_length
        clip, t5 = (
            tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            for tokenizer, length in zip((pipe.tokenizer, pipe.tokenizer_2), lengths, strict=True)
        )
        if any(tokens.attention_mask[:, -1].any() for tokens in (clip, t5)):  # full: the stock call warns if it cuts
            embeds, pooled, _ = pipe.encode_prompt(
                prompt=list(prompts), prompt_2=None, device=self.device, max_sequence_length=max_sequence_length
            )
        else:  # the stock call without its second tokenising, half its time with small encoders
            pooled = pipe.text_encoder(clip.input_ids.to(self.device)).pooler_output
            embeds = pipe.text_encoder_2(t5.input_ids.to(self.device))[0]
        return {"prompt_embeds": embeds.cpu(), "pooled_prompt_embeds": pooled.cpu()}

    def stock_guidance(self, true_cfg_scale: float, guidance_scale: float, negative_prompt: str) -> dict[str, Any]:
        """`guidance_scale` is the embedded guidance."""
        return {"guidance_scale": guidance_scale, **stock_true_cfg(true_cfg_scale, negative_prompt)}

    def _forward(self, inputs: ForwardInputs) -> Tensor:
        x, embeds = inputs.x, inputs.conditioning["prompt_embeds"]
        return self.transformer(
            hidden_states=x,
            timestep=inputs.timestep.to(x.dtype) / 1000,  # diffusers rounds the timestep, not sigma
            guidance=inputs.guidance,
            pooled_projections=inputs.conditioning["pooled_prompt_embeds"],
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(embeds.shape[1], 3, dtype=x.dtype, device=x.device),
            img_ids=FluxPipeline._prepare_latent_image_ids(len(x), *inputs.grid, x.device, x.dtype),
            return_dict=False,
        )[0]

    def _encode(self, pixels: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        vae = self._pipe.vae
        found = vae.encode(pixels).latent_dist
        latents = torch.cat([found.sample(generator) for generator in generators])
        return (latents - vae.config.shift_factor) * vae.config.scaling_factor

    def _decode(self, latents: Tensor) -> Tensor:
        vae = self._pipe.vae
        return vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0]


BACKBONE = FluxBackbone
