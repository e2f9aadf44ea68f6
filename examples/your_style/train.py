"""Trains a style LoRA for the teacher of params.yaml with diffusers and peft alone, as any trainer would.

    python -m examples.your_style.train --out loras/negative.safetensors

The captions stay as they are, and the pictures are those of the style. The file has the layout of diffusers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
import torch
from diffusers import FluxPipeline
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor
from torch.nn.functional import mse_loss
from tqdm import tqdm

from examples.your_style.look import pictures
from pipeline import artifacts, params
from pipeline.backbones import precision
from teacher.optim import warmup_then_cosine

NAME = "pytorch_lora_weights.safetensors"  # of the file that diffusers writes
DROPOUT = 0.1  # share of the captions that are emptied, so that guidance moves between two styled velocities
SIGMA_MEAN, SIGMA_STD = 0.7, 1.2  # sigma = sigmoid(normal), as in the teacher's own training


@dataclass
class Examples:
    """Pictures and captions as the transformer reads them.

    Attributes:
        x_0: Packed latents of the pictures, (N, T, C).
        caption: The row of each picture's caption in `pooled` and `states`, (N,); row 0 is the empty caption.
        pooled: Pooled CLIP states, (M, W).
        states: T5 states, (M, L, V).
    """

    x_0: Tensor
    caption: Tensor
    pooled: Tensor
    states: Tensor


@torch.no_grad()
def encode(pipe: FluxPipeline, texts: Sequence[str], images: np.ndarray, length: int) -> Examples:
    """Encodes captions and pictures, uint8 (N, H, W, 3), with the pipeline's own encoders; `length` T5 tokens."""
    distinct = ["", *sorted(set(texts))]
    place = {text: row for row, text in enumerate(distinct)}
    states, pooled = [], []
    for first in range(0, len(distinct), 256):
        part = distinct[first : first + 256]
        state, pool, _ = pipe.encode_prompt(prompt=part, prompt_2=None, max_sequence_length=length)
        states.append(state)
        pooled.append(pool)
    latents = []
    for first in range(0, len(images), 64):
        pixels = torch.from_numpy(images[first : first + 64]).permute(0, 3, 1, 2).float() / 127.5 - 1
        z = pipe.vae.encode(pixels).latent_dist.mean
        z = (z - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
        latents.append(pipe._pack_latents(z, *z.shape))
    caption = torch.tensor([place[text] for text in texts])
    return Examples(torch.cat(latents), caption, torch.cat(pooled), torch.cat(states))


def train(pipe: FluxPipeline, given: Examples, rank: int, train_steps: int, batch: int, rate: float, seed: int) -> None:
    """Adds a LoRA to the transformer and trains it: ||v(x_sigma, sigma) - (noise - x_0)||^2.

    Raises:
        ValueError: The loss is no longer finite.
    """
    transformer, rng = pipe.transformer.requires_grad_(False), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # for the LoRA's first values
    linear = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=linear))
    weights = [weight for weight in transformer.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, rate, weight_decay=0.0)
    schedule = warmup_then_cosine(optimizer, train_steps)
    side = int(given.x_0.shape[1] ** 0.5)
    places = {
        "txt_ids": torch.zeros(given.states.shape[1], 3),
        "img_ids": pipe._prepare_latent_image_ids(1, side, side, torch.device("cpu"), torch.float32),
    }
    bar = tqdm(range(train_steps), desc="style", mininterval=5)
    for step in bar:
        rows = torch.randint(len(given.x_0), (batch,), generator=rng)
        x_0, caption = given.x_0[rows], given.caption[rows] * (torch.rand(batch, generator=rng) >= DROPOUT)
        noise = torch.randn(x_0.shape, generator=rng)
        sigma = torch.sigmoid(SIGMA_MEAN + SIGMA_STD * torch.randn(batch, generator=rng))
        with torch.autocast("cpu", torch.bfloat16, enabled=not precision.emulates_bfloat16()):
            v = transformer(
                hidden_states=torch.lerp(x_0, noise, sigma[:, None, None]),
                timestep=sigma,
                pooled_projections=given.pooled[caption],
                encoder_hidden_states=given.states[caption],
                return_dict=False,
                **places,
            )[0]
        loss = mse_loss(v.float(), noise - x_0)
        if not loss.isfinite():
            raise ValueError(f"the loss must stay finite, got {loss.item()} at train step {step}")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def save(pipe: FluxPipeline, out: Path) -> None:
    """Writes the LoRA as diffusers does, whole or not at all."""
    layers = get_peft_model_state_dict(pipe.transformer)
    with TemporaryDirectory() as folder, artifacts.atomic_file(out) as partial:
        pipe.save_lora_weights(folder, transformer_lora_layers=layers)
        partial.write_bytes((Path(folder) / NAME).read_bytes())


@click.command()
@click.option("--out", default=Path("loras/negative.safetensors"), show_default=True, type=click.Path(path_type=Path))
@click.option("--pictures", "count", default=4096, show_default=True, type=click.IntRange(min=1))
@click.option("--rank", default=16, show_default=True, type=click.IntRange(min=1))
@click.option("--train-steps", default=500, show_default=True, type=click.IntRange(min=1))
@click.option("--batch", default=64, show_default=True, type=click.IntRange(min=1))
@click.option("--rate", default=2e-3, show_default=True, help="The highest learning rate.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
def main(out: Path, count: int, rank: int, train_steps: int, batch: int, rate: float, seed: int) -> None:
    """Trains the style LoRA for the teacher of params.yaml and writes it to one file."""
    teacher = params.load().teacher
    pipe = FluxPipeline.from_pretrained(teacher.path, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    texts, images = zip(*islice(pictures(seed), count), strict=True)
    given = encode(pipe, texts, np.stack(images), teacher.max_sequence_length)
    train(pipe, given, rank, train_steps, batch, rate, seed)
    save(pipe, out)
    click.echo(out)


if __name__ == "__main__":
    main()
