"""Sharpens the autoencoder's decoder on whole scenes: the encoder is frozen, so the latents do not change."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import numpy as np
import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from teacher.autoencoder import to_model
from teacher.optim import warmup_then_cosine
from teacher.settings import section
from teacher.world import batched, scenes


def train(
    vae: AutoencoderKL, batches: Iterable[np.ndarray], train_steps: int, learning_rate: float, noise: float
) -> Iterator[float]:
    """Trains the decoder in place; yields the mean squared error of each train step.

    Args:
        vae: A trained autoencoder with its normalisation set.
        batches: Images, uint8 (B, 64, 64, 3).
        train_steps: Optimiser steps.
        learning_rate: Peak of the learning rate.
        noise: Deviation of the noise on the normalised latents, as the transformer's latents are not exact.
    """
    vae.to(memory_format=torch.channels_last).requires_grad_(False)
    vae.decoder.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), learning_rate, betas=(0.9, 0.99), fused=True)
    schedule = warmup_then_cosine(optimizer, train_steps)
    for _, images in zip(range(train_steps), batches, strict=False):
        x = to_model(images).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            z = vae.encode(x).latent_dist.mean
            decoded = vae.decode(z + noise / vae.config.scaling_factor * torch.randn_like(z)).sample
        loss = torch.nn.functional.mse_loss(decoded.float(), x)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        yield loss.item()
    vae.eval()


@click.command()
@click.option("--autoencoder", type=click.Path(path_type=Path), default=Path("build/autoencoder"))
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/decoder"))
def main(autoencoder: Path, out: Path) -> None:
    """Trains the decoder and saves the whole autoencoder."""
    p = section("decoder")
    torch.manual_seed(p["seed"])
    vae = AutoencoderKL.from_pretrained(autoencoder)
    stream = batched((image for _, image in scenes(p["seed"])), p["batch"])
    steps = train(vae, map(np.stack, stream), p["train_steps"], p["learning_rate"], p["noise"])
    progress = tqdm(steps, total=p["train_steps"], desc="decoder", mininterval=10)
    mean = 0.0
    for step, loss in enumerate(progress, start=1):
        mean += (loss - mean) / min(step, 50)
        progress.set_postfix(loss=f"{mean:.5f}", refresh=False)
    vae.save_pretrained(out)


if __name__ == "__main__":
    main()
