"""Renders the training scenes once and encodes them: packed, normalised latents and their captions."""

from itertools import islice
from pathlib import Path

import click
import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from teacher.autoencoder import to_model
from teacher.settings import section
from teacher.world import batched, scenes


@torch.no_grad()
def encode(vae: AutoencoderKL, images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) -> packed latents float32 (B, T, 4 C) as FluxPipeline's transformer takes them."""
    with torch.autocast("cpu", torch.bfloat16):
        z = vae.encode(to_model(images).to(memory_format=torch.channels_last)).latent_dist.mean.float()
    z = (z - vae.config.shift_factor) * vae.config.scaling_factor
    return FluxPipeline._pack_latents(z, *z.shape)


@click.command()
@click.option("--autoencoder", type=click.Path(path_type=Path), default=Path("build/autoencoder"))
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/scenes"))
def main(autoencoder: Path, out: Path) -> None:
    """Writes latents.safetensors (N, T, 4 C) in float16 and captions.txt, one line per scene."""
    p = section("render")
    vae = AutoencoderKL.from_pretrained(autoencoder).eval().to(memory_format=torch.channels_last)
    captions, latents = [], []
    batches = islice(batched(scenes(p["seed"]), 100), p["scenes"] // 100)
    for batch in tqdm(batches, total=p["scenes"] // 100, desc="render", mininterval=10):
        captions += [caption for caption, _ in batch]
        latents.append(encode(vae, np.stack([image for _, image in batch])).half())
    out.mkdir(parents=True, exist_ok=True)
    save_file({"latents": torch.cat(latents)}, out / "latents.safetensors")
    (out / "captions.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
