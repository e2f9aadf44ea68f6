"""Teaches the T5 encoder which word belongs to which: each noun's state should tell its colour, place and company.

A text encoder learns this from images too, but late: an adjective two words away changes few pixels. From the captions
alone it takes a minute.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import T5EncoderModel, T5Tokenizer

from pipeline.scenes.captions import BACKGROUNDS, COLORS, RELATIONS, SHAPES, TASKS, Caption, split
from teacher.optim import warmup_then_cosine
from teacher.settings import section
from teacher.text import T5_LENGTH

_INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
NOUNS = {word: shape for shape in SHAPES for word in (shape, f"{shape}s", f"{shape}es")}
FACTS = {  # what is asked of each noun, and the answers; the first answer is "nothing is said"
    "color": (None, *COLORS),
    "relation": (None, *RELATIONS),
    "other_shape": (None, *SHAPES),
    "other_color": (None, *COLORS),
    "count": (1, 2, 3, 4),
    "background": (None, *BACKGROUNDS),
}


def facts(caption: Caption) -> list[dict]:
    """The facts of each noun of a caption, in their order."""
    rows = []
    for i, subject in enumerate(caption.subjects):
        other = caption.subjects[1 - i] if len(caption.subjects) == 2 else None
        rows.append(
            {
                "color": subject.color,
                "relation": caption.relation if i == 0 else _INVERSE.get(caption.relation),
                "other_shape": other.shape if other else None,
                "other_color": other.color if other else None,
                "count": subject.count,
                "background": caption.background,
            }
        )
    return rows


def batches(tokenizer: T5Tokenizer, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields ids (B, 12), the places of nouns (M, 2) as (row, token) and their answers (M, facts)."""
    rng = random.Random(seed)
    captions = split("train")
    while True:
        drawn = [rng.choice(captions[rng.choice(TASKS)]) for _ in range(size)]
        texts = [caption.text() for caption in drawn]
        ids = tokenizer(texts, padding="max_length", max_length=T5_LENGTH, return_tensors="pt").input_ids
        places = [(row, i) for row, text in enumerate(texts) for i, w in enumerate(text.split()) if w in NOUNS]
        answers = [
            [values.index(fact[name]) for name, values in FACTS.items()] for caption in drawn for fact in facts(caption)
        ]
        yield ids, torch.tensor(places), torch.tensor(answers)


def train(encoder: T5EncoderModel, tokenizer: T5Tokenizer, p: dict) -> Iterator[tuple[float, float]]:
    """Trains in place with one linear head per fact; yields the loss and the share of right answers per train step."""
    width = encoder.config.d_model
    heads = nn.ModuleList(nn.Linear(width, len(values)) for values in FACTS.values())
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], p["learning_rate"], weight_decay=0.0)
    schedule = warmup_then_cosine(optimizer, p["train_steps"])
    stream = batches(tokenizer, p["batch"], p["seed"])
    encoder.train()
    for _, (ids, places, answers) in zip(range(p["train_steps"]), stream, strict=False):
        states = encoder(ids)[0][places[:, 0], places[:, 1]]
        answered = [head(states) for head in heads]
        loss = sum(nn.functional.cross_entropy(a, answers[:, i]) for i, a in enumerate(answered))
        right = torch.stack([a.argmax(1) == answers[:, i] for i, a in enumerate(answered)]).float().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        yield loss.item(), right.item()
    encoder.eval()


@click.command()
@click.option("--transformer", "folder", type=click.Path(path_type=Path), default=Path("build/first_round"))
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/grounding"))
def main(folder: Path, out: Path) -> None:
    """Trains the T5 encoder that a first training of the transformer gave, and saves it."""
    p = section("grounding")
    torch.manual_seed(p["seed"])
    encoder = T5EncoderModel.from_pretrained(folder / "text_encoder_2")
    tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer_2")
    progress = tqdm(train(encoder, tokenizer, p), total=p["train_steps"], desc="grounding", mininterval=5)
    for loss, right in progress:
        progress.set_postfix(loss=f"{loss:.3f}", right=f"{right:.3f}", refresh=False)
    encoder.save_pretrained(out)


if __name__ == "__main__":
    main()
