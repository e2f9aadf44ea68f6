"""Teaches the text encoders which word belongs to which, from captions alone.

A text encoder also learns this from images, but late, since an adjective two words away changes few pixels. Direct
questions teach it in a minute. The T5's state of each noun should tell all facts of its object; CLIP's pooled state
should tell the facts of the scene.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from pipeline.scenes.captions import BACKGROUNDS, COLORS, RELATIONS, SHAPES, TASKS, Caption, split
from teacher import text
from teacher.optim import warmup_then_cosine
from teacher.settings import section

_INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
NOUNS = {word: shape for shape in SHAPES for word in (shape, f"{shape}s", f"{shape}es")}
FACTS = {  # the questions about each object, and the answers; None = the caption does not say
    "shape": SHAPES,
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
        relation = caption.relation or "left of"  # the layout's default for two objects
        rows.append(
            {
                "shape": subject.shape,
                "color": subject.color,
                "relation": None if other is None else relation if i == 0 else _INVERSE[relation],
                "other_shape": other.shape if other else None,
                "other_color": other.color if other else None,
                "count": subject.count,
                "background": caption.background,
            }
        )
    return rows


def nouns(captions: list[Caption]) -> tuple[Tensor, Tensor]:
    """Places (M, 2) of all nouns, as (caption, token of the T5), and their answers (M, facts)."""
    places = [(i, j) for i, c in enumerate(captions) for j, word in enumerate(c.text().split()) if word in NOUNS]
    answers = [[values.index(fact[name]) for name, values in FACTS.items()] for c in captions for fact in facts(c)]
    return torch.tensor(places), torch.tensor(answers)


class Lesson(nn.Module):
    """Both text encoders with one linear head per fact on each."""

    def __init__(self, p: dict) -> None:
        super().__init__()
        self.clip_tokenizer, self.t5_tokenizer = text.clip_tokenizer(), text.t5_tokenizer()
        self.text_encoder = text.clip_encoder(self.clip_tokenizer, p["clip_width"], p["clip_layers"])
        self.text_encoder_2 = text.t5_encoder(self.t5_tokenizer, p["t5_width"], p["t5_layers"])
        answers = [len(values) for values in FACTS.values()]
        self.heads = nn.ModuleDict(
            {
                "t5": nn.ModuleList(nn.Linear(p["t5_width"], n) for n in answers),
                "clip": nn.ModuleList(nn.Linear(p["clip_width"], n) for n in answers),
            }
        )

    def forward(self, captions: list[Caption], length: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and share of right answers for captions padded to `length` (B,) T5 tokens."""
        clip_ids, t5_ids = text.token_ids(self.clip_tokenizer, self.t5_tokenizer, [c.text() for c in captions])
        places, answers = nouns(captions)
        # CLIP tells the facts of the first object, and through it those of the second.
        first = torch.tensor([True, *(places[1:, 0] != places[:-1, 0])])
        t5 = text.encode_t5(self.text_encoder_2, t5_ids, length)[places[:, 0], places[:, 1]]
        clip = self.text_encoder(clip_ids).pooler_output
        losses, right = [], []
        for name, states, wanted in (("t5", t5, answers), ("clip", clip, answers[first])):
            for i, head in enumerate(self.heads[name]):
                answered = head(states)
                losses.append(nn.functional.cross_entropy(answered, wanted[:, i]))
                right.append((answered.argmax(1) == wanted[:, i]).float().mean())
        return torch.stack(losses).sum(), torch.stack(right).mean()


def train(lesson: Lesson, p: dict) -> Iterator[tuple[float, float]]:
    """Trains in place; yields the loss and the share of right answers per train step."""
    optimizer = torch.optim.AdamW(lesson.parameters(), p["learning_rate"], weight_decay=0.0, fused=True)
    schedule = warmup_then_cosine(optimizer, p["train_steps"])
    rng = random.Random(p["seed"])
    captions = split("train")
    for _ in range(p["train_steps"]):
        drawn = [rng.choice(captions[rng.choice(TASKS)]) for _ in range(p["batch"])]
        length = torch.tensor([rng.choice((text.T5_LENGTH, text.STOCK_LENGTH)) for _ in drawn])
        loss, right = lesson(drawn, length)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(lesson.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        yield loss.item(), right.item()


def save(lesson: Lesson, out: Path) -> None:
    """Writes the text side as folders of a FluxPipeline."""
    lesson.clip_tokenizer.save_pretrained(out / "tokenizer")
    lesson.t5_tokenizer.save_pretrained(out / "tokenizer_2")
    lesson.text_encoder.save_pretrained(out / "text_encoder")
    lesson.text_encoder_2.save_pretrained(out / "text_encoder_2")


def load(folder: Path) -> tuple[CLIPTokenizer, T5Tokenizer, CLIPTextModel, T5EncoderModel]:
    """Reads what `save` wrote."""
    return (
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        T5Tokenizer.from_pretrained(folder / "tokenizer_2"),
        CLIPTextModel.from_pretrained(folder / "text_encoder"),
        T5EncoderModel.from_pretrained(folder / "text_encoder_2"),
    )


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/grounding"))
def main(out: Path) -> None:
    """Trains both text encoders from scratch and saves them with their tokenizers."""
    p = section("grounding")
    torch.manual_seed(p["seed"])
    lesson = Lesson(p)
    progress = tqdm(train(lesson, p), total=p["train_steps"], desc="grounding", mininterval=5)
    for loss, right in progress:
        progress.set_postfix(loss=f"{loss:.3f}", right=f"{right:.3f}", refresh=False)
    save(lesson, out)


if __name__ == "__main__":
    main()
