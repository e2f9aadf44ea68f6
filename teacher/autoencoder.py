"""Trains the AutoencoderKL of the shipped teacher on rendered scenes."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import click
import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import tqdm

from teacher.optim import warmup_then_cosine
from teacher.settings import section
from teacher.world import batched, crops, scenes


def build(channels: list[int], latent_channels: int) -> AutoencoderKL:
    """An untrained autoencoder for (B, 3, H, W) in [-1, 1], downsampling by 2^(len(channels) - 1)."""
    levels = len(channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(channels),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=64,
    )


def to_model(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def train(
    vae: AutoencoderKL, batches: Iterable[np.ndarray], train_steps: int, learning_rate: float, kl_weight: float
) -> Iterator[float]:
    """Trains in place; yields the loss of each train step: squared error of pixels plus kl_weight x KL per latent."""
    vae.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(vae.parameters(), learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    schedule = warmup_then_cosine(optimizer, train_steps)
    for _, images in zip(range(train_steps), batches, strict=False):
        x = to_model(images).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        loss = torch.nn.functional.mse_loss(decoded.float(), x) + kl_weight * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        yield loss.item()


@torch.no_grad()
def normalise(vae: AutoencoderKL, images: np.ndarray) -> None:
    """Sets scaling and shift so that scaled latents have mean 0 and deviation 1 over these images."""
    z = vae.encode(to_model(images)).latent_dist.mean
    vae.register_to_config(shift_factor=z.mean().item(), scaling_factor=1 / z.std().item())


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/autoencoder"))
def main(out: Path) -> None:
    """Trains the autoencoder and saves it."""
    p = section("autoencoder")
    torch.manual_seed(p["seed"])
    vae = build(p["channels"], p["latent_channels"])
    whole = (image for _, image in scenes(p["seed"]))
    steps = p["crop_steps"] + p["scene_steps"]
    parts = batched(crops(p["seed"], side=32), p["batch"]), batched(whole, p["batch"])
    batches = (np.stack(batch) for batch in chain(islice(parts[0], p["crop_steps"]), parts[1]))
    progress = tqdm(
        train(vae, batches, steps, p["learning_rate"], p["kl_weight"]), total=steps, desc="autoencoder", mininterval=10
    )
    mean = 0.0
    for step, loss in enumerate(progress, start=1):
        mean += (loss - mean) / min(step, 50)
        progress.set_postfix(loss=f"{mean:.5f}", refresh=False)
    vae.eval()
    normalise(vae, np.stack(next(batched(whole, 256))))
    vae.save_pretrained(out)


if __name__ == "__main__":
    main()
