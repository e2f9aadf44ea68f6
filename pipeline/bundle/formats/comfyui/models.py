"""Which files and loaders ComfyUI has for each family."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class Models:
    """A family's models as ComfyUI publishes them. The files are named as its own templates name them."""

    transformers: Mapping[str, str]
    """File of the transformer, by the name of the base's folder in lower case; for models/diffusion_models."""
    text_encoders: tuple[str, ...]
    """Files of the text encoders, in the loader's order; for models/text_encoders."""
    text_type: str
    """The `type` of the loader of the text encoders."""
    vae: str
    """File of the autoencoder; for models/vae."""
    latent_channels: int = 16
    """Channels of the autoencoder's latents, before any packing."""
    embedded_guidance: bool = False
    """Whether models of the family read the guidance scale; a transformer without it ignores the value."""
    padded_text: bool = False
    """Whether the transformer reads padding, so that the number of tokens changes the image."""
    float32_noise: bool = False
    """Whether the family draws its noise in float32, whatever the weights are, as ComfyUI does."""
    rescaled_guidance: bool = False
    """Whether true CFG is rescaled to the norm of the conditional velocity, which ComfyUI's own nodes do not do."""

    def transformer(self, base: str) -> str:
        """The file of a base model's transformer; for a base that ComfyUI does not publish, a name to choose."""
        name = PurePath(base).name
        return self.transformers.get(name.lower(), name + SUFFIX)

    def published(self, base: str) -> bool:
        """Whether ComfyUI publishes a file of this base's transformer."""
        return PurePath(base).name.lower() in self.transformers


MODELS: dict[str, Models] = {
    "flux": Models(
        transformers={
            "flux.1-dev": "flux1-dev.safetensors",
            "flux.1-schnell": "flux1-schnell.safetensors",
            "flux.1-krea-dev": "flux1-krea-dev_fp8_scaled.safetensors",
        },
        text_encoders=("clip_l.safetensors", "t5xxl_fp16.safetensors"),
        text_type="flux",
        vae="ae.safetensors",
        embedded_guidance=True,
        padded_text=True,
    ),
    "qwen_image": Models(
        transformers={
            "qwen-image": "qwen_image_fp8_e4m3fn.safetensors",
            "qwen-image-2512": "qwen_image_2512_fp8_e4m3fn.safetensors",
        },
        text_encoders=("qwen_2.5_vl_7b_fp8_scaled.safetensors",),
        text_type="qwen_image",
        vae="qwen_image_vae.safetensors",
        rescaled_guidance=True,
    ),
    "z_image": Models(
        transformers={"z-image": "z_image_bf16.safetensors", "z-image-turbo": "z_image_turbo_bf16.safetensors"},
        text_encoders=("qwen_3_4b.safetensors",),
        text_type="lumina2",
        vae="ae.safetensors",
        float32_noise=True,
    ),
}
"""By the family of `Bundle.family`."""
