"""The shipped teacher's text side: word-level CLIP and T5 tokenizers over the caption grammar, and small encoders."""

import math

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from pipeline.scenes.captions import words

CLIP_LENGTH = 16  # tokens with begin and end; the longest caption has 9 words
T5_LENGTH = 12  # tokens with the end: at least two pads behind the longest caption
_T5_CONTEXT = 24  # training length of the T5; from the last pad the position bias to every word is flat
STOCK_LENGTH = 512  # FluxPipeline's default max_sequence_length


def clip_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose byte pairs make one token of every word of the grammar, the same ids in each process."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    merges = byte_pairs([[*word[:-1], f"{word[-1]}</w>"] for word in words()])
    pieces = [*letters, *(f"{c}</w>" for c in letters), *("".join(merge) for merge in merges)]
    vocab = {piece: i for i, piece in enumerate((*pieces, "<|startoftext|>", "<|endoftext|>"))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CLIP_LENGTH)


def byte_pairs(words: list[list[str]]) -> list[tuple[str, str]]:
    """Merges that make one token of each word, given in pieces. Later merges rank behind and break no earlier word."""
    merges = []
    for pieces in words:
        for merge in merges:
            pieces = _joined(pieces, merge)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = _joined(pieces, merges[-1])
    return merges


def _joined(pieces: list[str], merge: tuple[str, str]) -> list[str]:
    result = []
    for piece in pieces:
        if result and (result[-1], piece) == merge:
            result[-1] += piece
        else:
            result.append(piece)
    return result


def t5_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer with one token per word; letters cover the rest."""
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    letters = [(chr(c), -8.0) for c in range(ord("a"), ord("z") + 1)]
    vocab = [*specials, *((f"▁{word}", -2.0) for word in words()), *letters]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=STOCK_LENGTH)


def clip_encoder(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextModel:
    """An untrained CLIP text model; its pooled output is the state of the end token."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 16,
            max_position_embeddings=CLIP_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            initializer_factor=5.0,
        )
    )


def t5_encoder(tokenizer: T5Tokenizer, width: int, layers: int) -> T5EncoderModel:
    """An untrained T5 encoder whose position bias is flat from 12 tokens on, so that all far pads are alike."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=16,
            d_ff=2 * width,
            num_layers=layers,
            num_heads=width // 16,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=12,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )


def encode_t5(encoder: T5EncoderModel, ids: Tensor, length: int | Tensor) -> Tensor:
    """States of captions padded to `length`, (B, 12, W), the last token a pad that stands for all later pads.

    FluxPipeline pads T5 ids to max_sequence_length (512 by default) and masks nothing. In
    attention, n equal tokens act like one token with log n added to its logit. So 24 tokens with a raised last one act
    like 512.

    Args:
        encoder: As `t5_encoder` makes it.
        ids: (B, 24), as `token_ids` gives them.
        length: Length of the padded captions, 12 or at least 24; one for all, or one per caption (B,).
    """
    length = torch.as_tensor(length, dtype=torch.float32).expand(len(ids))
    bias = torch.zeros(len(ids), ids.shape[1])
    bias[:, -1] = torch.log((length - ids.shape[1] + 1).clamp(min=1))
    short = (length == T5_LENGTH)[:, None]
    bias[:, T5_LENGTH:] = bias[:, T5_LENGTH:].masked_fill(short, -1e4)
    states = encoder(ids, attention_mask=bias[:, None, None].expand(-1, 1, ids.shape[1], -1))[0]
    last = torch.where(short[..., None], states[:, T5_LENGTH - 1 : T5_LENGTH], states[:, -1:])
    return torch.cat([states[:, : T5_LENGTH - 1], last], dim=1)


def last_pad_bias(length: int) -> float:
    """The value to add to the logit of the last of 12 text tokens, so that it stands for all pads up to `length`."""
    return math.log(length - T5_LENGTH + 1)


def token_ids(clip: CLIPTokenizer, t5: T5Tokenizer, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Ids of the CLIP (B, 16) and of the T5 (B, 24), padded."""
    padded = dict(padding="max_length", truncation=True, return_tensors="pt")
    return (
        clip(captions, max_length=CLIP_LENGTH, **padded).input_ids,
        t5(captions, max_length=_T5_CONTEXT, **padded).input_ids,
    )
