"""Trains the FluxTransformer2DModel of the shipped teacher, its text encoders with it, on encoded scenes."""

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
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from pipeline.scenes.captions import task
from teacher import text
from teacher.optim import warmup_then_cosine
from teacher.settings import section


class Model(nn.Module):
    """Transformer and text encoders, trained together: ids -> velocity."""

    def __init__(self, p: dict, channels: int, start: Path | None = None) -> None:
        """
        Args:
            p: The sizes.
            channels: Of a latent token.
            start: A finished training to go on from, with its tokenizers; None = from scratch.
        """
        super().__init__()
        if start:
            self.clip_tokenizer = CLIPTokenizer.from_pretrained(start / "tokenizer")
            self.t5_tokenizer = T5Tokenizer.from_pretrained(start / "tokenizer_2")
        else:
            self.clip_tokenizer, self.t5_tokenizer = text.clip_tokenizer(), text.t5_tokenizer()
        self.text_encoder = text.clip_encoder(self.clip_tokenizer, p["clip_width"], p["clip_layers"])
        self.text_encoder_2 = text.t5_encoder(self.t5_tokenizer, p["t5_width"], p["t5_layers"])
        self.transformer = FluxTransformer2DModel(
            in_channels=channels,
            num_layers=p["double_blocks"],
            num_single_layers=p["single_blocks"],
            attention_head_dim=32,
            num_attention_heads=p["width"] // 32,
            joint_attention_dim=p["t5_width"],
            pooled_projection_dim=p["clip_width"],
            axes_dims_rope=(8, 12, 12),
        )
        # The residual stream stays in float32 under autocast, and with it the timestep: 987 would become 988.
        for embedder in (self.transformer.x_embedder, self.transformer.context_embedder):
            embedder.register_forward_hook(lambda module, args, y: y.float())
        self.velocity = self.transformer  # what the loss calls: replaced by the compiled transformer in training

    def load(self, start: Path, text_encoder_2: Path) -> None:
        """Takes the weights of a finished training, but the T5 encoder of `text_encoder_2`."""
        trained = {
            self.transformer: FluxTransformer2DModel.from_pretrained(start / "transformer"),
            self.text_encoder: CLIPTextModel.from_pretrained(start / "text_encoder"),
            self.text_encoder_2: T5EncoderModel.from_pretrained(text_encoder_2),
        }
        for part, source in trained.items():
            part.load_state_dict(source.state_dict())

    def forward(
        self, x: Tensor, sigma: Tensor, clip_ids: Tensor, t5_ids: Tensor, pads: tuple[Tensor, Tensor]
    ) -> Tensor:
        """v(x, sigma) for x (B, T, C), sigma (B,), ids as `text.token_ids` gives them, pads as `PadWeights.draw`."""
        in_t5, in_transformer = pads
        side = int(x.shape[1] ** 0.5)
        states = self.text_encoder_2(t5_ids, attention_mask=in_t5.expand(-1, 1, t5_ids.shape[1], -1))[0]
        return self.velocity(
            hidden_states=x,
            timestep=sigma,
            pooled_projections=self.text_encoder(clip_ids).pooler_output,
            encoder_hidden_states=states[:, : text.T5_LENGTH],
            txt_ids=x.new_zeros(text.T5_LENGTH, 3),
            img_ids=FluxPipeline._prepare_latent_image_ids(len(x), side, side, x.device, x.dtype),
            joint_attention_kwargs={"attention_mask": nn.functional.pad(in_transformer, (0, x.shape[1]))},
            return_dict=False,
        )[0]


@dataclass
class Scenes:
    """The encoded scenes, with the ids of their captions and of the empty caption."""

    latents: Tensor
    clip_ids: Tensor
    t5_ids: Tensor
    empty: tuple[Tensor, Tensor]
    weights: Tensor

    @classmethod
    def load(cls, folder: Path, model: Model, task_weights: dict[str, float]) -> "Scenes":
        captions = (folder / "captions.txt").read_text().splitlines()
        weights = torch.tensor([float(task_weights[task(caption)]) for caption in captions])
        tokenizers = model.clip_tokenizer, model.t5_tokenizer
        latents = load_file(folder / "latents.safetensors")["latents"]
        return cls(latents, *text.token_ids(*tokenizers, captions), text.token_ids(*tokenizers, [""]), weights)

    def batches(
        self, size: int, caption_dropout: float, rng: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Draws scenes by weight; each caption is emptied with probability `caption_dropout`."""
        while True:
            ids = torch.multinomial(self.weights, size, replacement=True, generator=rng)
            drop = (torch.rand(size, generator=rng) < caption_dropout)[:, None]
            clip_ids = torch.where(drop, self.empty[0], self.clip_ids[ids])
            t5_ids = torch.where(drop, self.empty[1], self.t5_ids[ids])
            yield self.latents[ids].float(), clip_ids, t5_ids


def train(model: Model, scenes: Scenes, p: dict) -> Iterator[tuple[float, Model]]:
    """Flow matching, ||v(x_sigma, sigma) - (noise - x_0)||^2 with logit-normal sigma (SD3, arXiv 2403.03206).

    Yields:
        The loss of each train step and the model of averaged weights (EMA).
    """
    rng = torch.Generator().manual_seed(p["seed"])
    ema = deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), p["learning_rate"], betas=(0.9, 0.98), weight_decay=p["weight_decay"], fused=True
    )
    schedule = warmup_then_cosine(optimizer, p["train_steps"])
    pads = text.PadWeights(rng)
    model.velocity = torch.compile(model.transformer) if p["compile"] else model.transformer
    batches = scenes.batches(p["batch"], p["caption_dropout"], rng)
    for step, (x_0, clip_ids, t5_ids) in zip(range(p["train_steps"]), batches, strict=False):
        noise = torch.randn(x_0.shape, generator=rng)
        sigma = torch.sigmoid(p["sigma_mean"] + p["sigma_std"] * torch.randn(len(x_0), generator=rng))
        x = torch.lerp(x_0, noise, sigma[:, None, None])
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel([SDPBackend.MATH]):
            v = model(x, sigma, clip_ids, t5_ids, pads.draw(len(x)))
        loss = nn.functional.mse_loss(v.float(), noise - x_0)
        if not loss.isfinite():
            raise ValueError(f"transformer: the loss must stay finite, got {loss.item()} at train step {step}")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        # A short memory at first, so that the untrained weights fade.
        decay = min(p["ema"], (step + 1) / (step + 10))
        torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
        yield loss.item(), ema


def save(model: Model, out: Path) -> None:
    """Writes transformer and text side as folders of a FluxPipeline."""
    for name in ("transformer", "text_encoder", "text_encoder_2"):
        getattr(model, name).save_pretrained(out / name)
    model.clip_tokenizer.save_pretrained(out / "tokenizer")
    model.t5_tokenizer.save_pretrained(out / "tokenizer_2")


@click.command()
@click.option("--scenes", "folder", type=click.Path(path_type=Path), default=Path("build/scenes"))
@click.option("--round", "name", type=click.Choice(["first", "second"]), default="first", show_default=True)
def main(folder: Path, name: str) -> None:
    """Trains one round, and saves the averaged weights now and then and at the end, in build/<round>_round.

    The second round goes on from the first, with the T5 encoder of build/grounding.
    """
    out = Path("build") / f"{name}_round"
    p = section("transformer") | section(f"{name}_round")
    torch.manual_seed(p["seed"])
    channels = load_file(folder / "latents.safetensors")["latents"].shape[2]
    if name == "first":
        model = Model(p, channels)
    else:
        start = Path("build") / "first_round"
        model = Model(p, channels, start)
        model.load(start, Path("build") / "grounding")
    scenes = Scenes.load(folder, model, p["task_weights"])
    progress = tqdm(train(model, scenes, p), total=p["train_steps"], desc=f"{name} round", mininterval=10)
    mean = 0.0
    for step, (loss, ema) in enumerate(progress, start=1):
        mean += (loss - mean) / min(step, 200)
        progress.set_postfix(loss=f"{mean:.4f}", refresh=False)
        if step % p["save_every"] == 0 or step == p["train_steps"]:
            save(ema, out)


if __name__ == "__main__":
    main()
