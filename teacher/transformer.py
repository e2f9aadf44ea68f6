"""Trains the FluxTransformer2DModel of the shipped teacher on encoded scenes, its text encoders fixed."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from pipeline.scenes.captions import task
from teacher import grounding, text
from teacher.optim import warmup_then_cosine
from teacher.settings import section


def build(p: dict, channels: int, joint_width: int, pooled_width: int) -> FluxTransformer2DModel:
    """An untrained transformer for latent tokens of `channels` values."""
    transformer = FluxTransformer2DModel(
        in_channels=channels,
        num_layers=p["double_blocks"],
        num_single_layers=p["single_blocks"],
        attention_head_dim=32,
        num_attention_heads=p["width"] // 32,
        joint_attention_dim=joint_width,
        pooled_projection_dim=pooled_width,
        axes_dims_rope=(8, 12, 12),
    )
    # Under autocast the residual stream stays in float32, and the timestep too: else 987 would become 988.
    for embedder in (transformer.x_embedder, transformer.context_embedder):
        embedder.register_forward_hook(lambda module, args, y: y.float())
    return transformer


@dataclass
class Batch:
    """Scenes x_0 (B, T, C) and their conditioning: pooled (B, W), states (B, 12, W), bias of keys (B, 12)."""

    x_0: Tensor
    pooled: Tensor
    states: Tensor
    bias: Tensor


class Scenes:
    """The encoded scenes, each distinct caption encoded once."""

    def __init__(self, folder: Path, encoders: Path, task_weights: dict[str, float]) -> None:
        """
        Args:
            folder: Folder of the latents and their captions.
            encoders: Folder of the text encoders.
            task_weights: Factor per task on the probability of drawing one of its scenes.
        """
        captions = (folder / "captions.txt").read_text(encoding="utf-8").splitlines()
        distinct = ["", *sorted(set(captions))]
        place = {caption: i for i, caption in enumerate(distinct)}
        self.latents = load_file(folder / "latents.safetensors")["latents"]
        self.captions = torch.tensor([place[caption] for caption in captions])
        self.weights = torch.tensor([float(task_weights[task(caption)]) for caption in captions])
        self.pooled, self.states = _encode(encoders, distinct)

    def draw(self, size: int, caption_dropout: float, long_share: float, rng: torch.Generator) -> Batch:
        """Draws scenes by weight.

        Args:
            size: Size of the batch.
            caption_dropout: Probability that a caption is emptied, so that true CFG has an unconditional velocity.
            long_share: Probability that a caption is padded to more than 12 tokens, up to the stock 512, log-uniformly.
            rng: Generator of all draws.
        """
        ids = torch.multinomial(self.weights, size, replacement=True, generator=rng)
        keep = torch.rand(size, generator=rng) >= caption_dropout
        long = (torch.rand(size, generator=rng) < long_share).long()
        captions = self.captions[ids] * keep
        bias = torch.zeros(size, text.T5_LENGTH)
        bias[:, -1] = long * torch.rand(size, generator=rng) * text.last_pad_bias(text.STOCK_LENGTH)
        return Batch(self.latents[ids].float(), self.pooled[captions], self.states[long, captions], bias)


@torch.no_grad()
def _encode(folder: Path, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Pooled states (N, W), and token states for two paddings (2, N, 12, W): 12 tokens, and the stock pipeline's."""
    clip_tokenizer, t5_tokenizer, text_encoder, text_encoder_2 = grounding.load(folder)
    pooled, states = [], []
    for first in range(0, len(captions), 512):
        clip_ids, t5_ids = text.token_ids(clip_tokenizer, t5_tokenizer, captions[first : first + 512])
        pooled.append(text_encoder(clip_ids).pooler_output)
        lengths = (text.T5_LENGTH, text.STOCK_LENGTH)
        states.append(torch.stack([text.encode_t5(text_encoder_2, t5_ids, length) for length in lengths]))
    return torch.cat(pooled), torch.cat(states, dim=1)


def train(transformer: FluxTransformer2DModel, scenes: Scenes, p: dict) -> Iterator[tuple[float, nn.Module]]:
    """Flow matching, ||v(x_sigma, sigma) - (noise - x_0)||^2 with logit-normal sigma (SD3, arXiv 2403.03206).

    Yields:
        The loss of each train step and the transformer of averaged weights (EMA).
    """
    rng = torch.Generator().manual_seed(p["seed"])
    ema = deepcopy(transformer).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        transformer.parameters(), p["learning_rate"], betas=(0.9, 0.98), weight_decay=p["weight_decay"], fused=True
    )
    schedule = warmup_then_cosine(optimizer, p["train_steps"])
    velocity = torch.compile(transformer) if p["compile"] else transformer
    side = int(scenes.latents.shape[1] ** 0.5)
    places = dict(
        txt_ids=torch.zeros(text.T5_LENGTH, 3),
        img_ids=FluxPipeline._prepare_latent_image_ids(1, side, side, torch.device("cpu"), torch.float32),
    )
    for step in range(p["train_steps"]):
        long = step >= p["long_from"] * p["train_steps"]
        batch = scenes.draw(p["batch"], p["caption_dropout"], p["long_share"] if long else 0.0, rng)
        noise = torch.randn(batch.x_0.shape, generator=rng)
        sigma = torch.sigmoid(p["sigma_mean"] + p["sigma_std"] * torch.randn(p["batch"], generator=rng))
        mask = nn.functional.pad(batch.bias, (0, side**2))[:, None, None]
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel([SDPBackend.MATH]):
            v = velocity(
                hidden_states=torch.lerp(batch.x_0, noise, sigma[:, None, None]),
                timestep=sigma,
                pooled_projections=batch.pooled,
                encoder_hidden_states=batch.states,
                joint_attention_kwargs={"attention_mask": mask},
                return_dict=False,
                **places,
            )[0]
        loss = nn.functional.mse_loss(v.float(), noise - batch.x_0)
        if not loss.isfinite():
            raise ValueError(f"transformer: the loss must stay finite, got {loss.item()} at train step {step}")
        loss.backward()
        nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        # The average has a short memory at first, so that the untrained weights fade.
        decay = min(p["ema"], (step + 1) / (step + 10))
        torch._foreach_lerp_(list(ema.parameters()), list(transformer.parameters()), 1 - decay)
        yield loss.item(), ema


@click.command()
@click.option("--scenes", "folder", type=click.Path(path_type=Path), default=Path("build/scenes"))
@click.option("--encoders", type=click.Path(path_type=Path), default=Path("build/grounding"))
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/transformer"))
def main(folder: Path, encoders: Path, out: Path) -> None:
    """Trains the transformer, and saves the averaged weights at intervals and at the end."""
    p = section("transformer")
    torch.manual_seed(p["seed"])
    scenes = Scenes(folder, encoders, p["task_weights"])
    transformer = build(p, scenes.latents.shape[2], scenes.states.shape[3], scenes.pooled.shape[1])
    progress = tqdm(train(transformer, scenes, p), total=p["train_steps"], desc="transformer", mininterval=10)
    mean = 0.0
    for step, (loss, ema) in enumerate(progress, start=1):
        mean += (loss - mean) / min(step, 200)
        progress.set_postfix(loss=f"{mean:.4f}", refresh=False)
        if step % p["save_every"] == 0 or step == p["train_steps"]:
            ema.save_pretrained(out)


if __name__ == "__main__":
    main()
