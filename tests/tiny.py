"""Pipelines with random weights, small enough for a unit test and made of the real classes."""

import string
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from pipeline.scenes import captions
from teacher.text import byte_pairs

HEIGHT = WIDTH = 64  # pixels: 4 x 4 latent tokens of 32 channels
MAX_SEQUENCE_LENGTH = 16


def make_tiny_flux(path: str | Path, guidance_embeds: bool = False, seed: int = 0) -> Path:
    """Writes a FluxPipeline directory with random weights drawn from `seed` and returns its path."""
    return _make(lambda: build_pipeline(guidance_embeds), path, seed)


def make_tiny_qwen_image(path: str | Path, seed: int = 0) -> Path:
    """Writes a QwenImagePipeline directory with random weights drawn from `seed` and returns its path."""
    return _make(build_qwen_image, path, seed)


def make_tiny_z_image(path: str | Path, seed: int = 0) -> Path:
    """Writes a ZImagePipeline directory with random weights drawn from `seed` and returns its path."""
    return _make(build_z_image, path, seed)


def _make(build: Callable[[], DiffusionPipeline], path: str | Path, seed: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        build().save_pretrained(str(path))
    return Path(path)


def build_pipeline(guidance_embeds: bool = False) -> FluxPipeline:
    """A FluxPipeline of 64 x 64 images from the global random state."""
    tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            initializer_factor=10.0,
        )
    )
    text_encoder_2 = T5EncoderModel(
        T5Config(vocab_size=len(tokenizer_2), d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    transformer = FluxTransformer2DModel(
        in_channels=32,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=16,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**FLUX_SCHEDULE),
        vae=_autoencoder(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    )


def build_qwen_image() -> QwenImagePipeline:
    """A QwenImagePipeline of 64 x 64 images from the global random state."""
    tokenizer = qwen_tokenizer()
    text_encoder = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": 24,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 4]},
                "initializer_range": 0.5,
            },
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 1,
                "out_hidden_size": 24,
            },
        )
    )
    transformer = QwenImageTransformer2DModel(
        in_channels=32,
        out_channels=8,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=8,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1 * i for i in range(8)],
        latents_std=[1.0 + 0.1 * i for i in range(8)],
    )
    scheduler = FlowMatchEulerDiscreteScheduler(**QWEN_SCHEDULE)
    return QwenImagePipeline(
        scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer
    )


def build_z_image() -> ZImagePipeline:
    """A ZImagePipeline of 64 x 64 images from the global random state."""
    tokenizer = qwen_tokenizer()
    text_encoder = Qwen3Model(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=12,
            initializer_range=0.5,
        )
    )
    transformer = ZImageTransformer2DModel(
        in_channels=8,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=24,
        axes_dims=[4, 6, 6],
        axes_lens=[256, 32, 32],
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    return ZImagePipeline(
        scheduler=scheduler, vae=_autoencoder(), text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer
    )


FLUX_SCHEDULE = {  # of FLUX.1-dev
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
QWEN_SCHEDULE = {  # of Qwen-Image
    "shift": 1.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
}


def _autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=4,
        scaling_factor=0.5,
        shift_factor=0.1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def qwen_tokenizer() -> Qwen2Tokenizer:
    """A Qwen2 tokenizer with Qwen's chat marks and a token per word: Qwen-Image's template has 34, as in life."""
    template = (
        "system user assistant Describe the image by detailing the color shape size texture quantity text spatial"
    )
    known = [*template.split(), "relationships", "of", "objects", "and", "background", *captions.words()]
    merges = byte_pairs([list(start + word) for word in dict.fromkeys(known) for start in ("", "Ġ")])
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    pieces = dict.fromkeys([*bytes_to_unicode().values(), *("".join(merge) for merge in merges), *specials])
    tokenizer = Qwen2Tokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, additional_special_tokens=specials[1:]
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def clip_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer without merges: one token per character, so that it reads every caption."""
    characters = string.ascii_lowercase + string.digits + ".,"
    pieces = ["<|startoftext|>", "<|endoftext|>", *characters, *(f"{c}</w>" for c in characters)]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=64)


def t5_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer with one token per word of the scene captions."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in captions.words())]
    vocab = [(piece, 0.0 if i < 3 else -2.0) for i, piece in enumerate(pieces)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)
