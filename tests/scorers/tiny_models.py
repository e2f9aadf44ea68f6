"""Folders of the scorers' large models with random weights, as the hub's folders are: real classes, a few numbers."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def make_qwen_vl(folder: Path, merges: tuple[tuple[str, str], ...] = (("Y", "e"), ("Ye", "s"), ("N", "o"))) -> Path:
    """A Qwen2.5-VL folder whose answers are printable characters, "Yes" and "No"."""
    torch.manual_seed(0)
    pieces = dict.fromkeys([*bytes_to_unicode().values(), *("".join(merge) for merge in merges), *QWEN_SPECIALS])
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=list(merges),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(QWEN_SPECIALS[1:]),
    )
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(vocab),
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
            "initializer_range": 0.5,
            "tie_word_embeddings": False,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 32,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.5,
        },
        image_token_id=vocab["<|image_pad|>"],
        video_token_id=vocab["<|video_pad|>"],
        vision_start_token_id=vocab["<|vision_start|>"],
        vision_end_token_id=vocab["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    ends = [vocab["<|im_end|>"], vocab["<|endoftext|>"]]
    model.generation_config.update(
        do_sample=True, temperature=0.1, top_k=1, repetition_penalty=1.05, eos_token_id=ends, pad_token_id=ends[1]
    )
    model.save_pretrained(folder)
    pixels = {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 1280}
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**pixels),
        chat_template=QWEN_TEMPLATE,
    ).save_pretrained(folder)
    return folder


def make_clip_flant5(folder: Path, safe: bool = True) -> dict[str, Path]:
    """The three weights of CLIP-FlanT5 by their names: network, CLIP's configuration and tokenizer, as hub folders.

    The T5 is of version 1.1: its head is no copy of its embedding.
    """
    torch.manual_seed(0)
    network, vision_folder, tokenizer_folder = (folder / name for name in ("network", "clip", "t5"))
    for path in (network, vision_folder, tokenizer_folder):
        path.mkdir(parents=True)
    tokenizer = make_t5_tokenizer()
    tokenizer.save(str(tokenizer_folder / "tokenizer.json"))
    text = {
        "vocab_size": tokenizer.get_vocab_size(),
        "d_model": 24,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 2,
        "num_heads": 2,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
    }
    config = {"model_type": "clip_t5", "architectures": ["CLIPT5ForConditionalGeneration"], **text}
    config |= {"mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, "mm_hidden_size": 16}
    config |= {"torch_dtype": "float16", "use_cache": False, "n_positions": 512, "transformers_version": "4.31.0"}
    (network / "config.json").write_text(json.dumps(config))
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    (vision_folder / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": vision}))

    t5, clip = T5ForConditionalGeneration(T5Config(**text)), CLIPVisionModel(CLIPVisionConfig(**vision))
    projector = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 24))
    of_t5 = {key: tensor for key, tensor in t5.state_dict().items() if "embed_tokens" not in key}
    of_clip = {f"vision_tower.vision_tower.vision_model.{key}": t for key, t in clip.state_dict().items()}
    state = {key: 0.5 * torch.randn_like(tensor) for key, tensor in (of_t5 | of_clip).items()}
    state |= {f"mm_projector.{key}": tensor.clone() for key, tensor in projector.state_dict().items()}
    write_shards(network, state, safe)
    return {"clip-flant5-xxl": network, "clip-vit-large-patch14-336": vision_folder, "flan-t5-xxl": tokenizer_folder}


def write_shards(folder: Path, state: dict[str, torch.Tensor], safe: bool) -> None:
    """Two files and their index."""
    base, suffix = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    keys, weight_map = sorted(state), {}
    for number, part in enumerate((keys[::2], keys[1::2]), start=1):
        name = f"{base}-0000{number}-of-00002.{suffix}"
        tensors = {key: state[key].contiguous() for key in part}
        if safe:
            save_file(tensors, folder / name)
        else:
            torch.save(tensors, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / f"{base}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def make_t5_tokenizer() -> Tokenizer:
    """A T5 tokenizer of single letters, with "Yes" as one token, that ends each text with </s>."""
    letters = sorted({chr(i) for i in range(33, 127)})
    pieces = ["<pad>", "</s>", "<unk>", "▁", "▁Yes", *letters]
    tokenizer = Tokenizer(models.Unigram([(piece, 0.0 if i < 3 else -2.0) for i, piece in enumerate(pieces)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)]
    )
    return tokenizer
