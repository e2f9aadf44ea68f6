"""The shipped teacher's text side: word-level CLIP and T5 tokenizers over the caption grammar, and small encoders."""

import json

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from pipeline.scenes.captions import words

CLIP_LENGTH = 16  # tokens with begin and end; the longest caption has 9 words
T5_LENGTH = 12  # tokens with the end: at least two pads behind the longest caption
_T5_CONTEXT = 24  # training length of the T5: the last pad stands farther from every word than the bias can tell
STOCK_LENGTH = 512  # FluxPipeline's default max_sequence_length


def clip_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose byte pairs are trained until every word of the grammar is one token."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    trainer = trainers.BpeTrainer(
        vocab_size=2000, min_frequency=1, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator([" ".join((*words(), *letters))], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    specials = ("<|startoftext|>", "<|endoftext|>")
    vocab = model["vocab"] | {piece: len(model["vocab"]) + i for i, piece in enumerate(specials)}
    return CLIPTokenizer(vocab=vocab, merges=[tuple(merge) for merge in model["merges"]], model_max_length=CLIP_LENGTH)


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
    """An untrained T5 encoder whose position bias is flat from 12 tokens on, so that far pads are all alike."""
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


class PadWeights:
    """Makes one pad stand for many.

    FluxPipeline pads T5 ids to max_sequence_length (512 by default) and masks nothing, so a model trained on short
    sequences meets hundreds of pads it never saw. Equal tokens in an attention are one token whose logit is raised by
    the log of their number: the last pad gets that raise, and a batch of 24 tokens behaves like one of 24 + n.
    """

    def __init__(self, rng: torch.Generator) -> None:
        self.rng = rng

    def draw(self, batch: int) -> tuple[Tensor, Tensor]:
        """Additive key biases of the T5, (B, 1, 1, 24), and of the transformer's text tokens, (B, 1, 1, 12).

        Half of the samples see 12 tokens as the pipeline here pads them; half see up to 512, log-uniform.
        """
        short = torch.rand(batch, generator=self.rng) < 0.5
        extra = torch.exp(torch.rand(batch, generator=self.rng) * torch.log(torch.tensor(float(STOCK_LENGTH))))
        in_t5 = torch.zeros(batch, _T5_CONTEXT)
        in_t5[:, -1] = torch.log(extra)
        in_t5[:, T5_LENGTH:] = in_t5[:, T5_LENGTH:].masked_fill(short[:, None], -1e4)
        in_transformer = torch.zeros(batch, T5_LENGTH)
        in_transformer[:, -1] = torch.where(short, 0.0, torch.log(extra + _T5_CONTEXT - T5_LENGTH))
        return in_t5[:, None, None], in_transformer[:, None, None]


def token_ids(clip: CLIPTokenizer, t5: T5Tokenizer, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Ids of the CLIP (B, 16) and of the T5 (B, 24), padded."""
    padded = dict(padding="max_length", truncation=True, return_tensors="pt")
    return (
        clip(captions, max_length=CLIP_LENGTH, **padded).input_ids,
        t5(captions, max_length=_T5_CONTEXT, **padded).input_ids,
    )
