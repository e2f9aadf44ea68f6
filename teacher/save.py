"""Puts the trained parts together as a FluxPipeline directory."""

import shutil
from pathlib import Path

import click
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from teacher import grounding

CARD = Path(__file__).with_name("README.md")


def assemble(autoencoder: Path, encoders: Path, transformer: Path) -> FluxPipeline:
    """The pipeline of the trained parts, with FLUX.1-dev's own scheduler settings."""
    tokenizer, tokenizer_2, text_encoder, text_encoder_2 = grounding.load(encoders)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0,
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=4096,
        ),
        vae=AutoencoderKL.from_pretrained(autoencoder),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=FluxTransformer2DModel.from_pretrained(transformer),
    )


def save(pipe: FluxPipeline, out: Path) -> None:
    """Writes the pipeline; transformer and autoencoder in float16, which halves the size without a visible loss.

    The text encoders stay in float32: transformers loads a model in its saved dtype, and the pipeline draws its
    noise in the dtype of the text encoders.
    """
    shutil.rmtree(out, ignore_errors=True)
    pipe.transformer.to(torch.float16)
    pipe.vae.to(torch.float16)
    pipe.save_pretrained(out)
    shutil.copy(CARD, out / "README.md")


@click.command()
@click.option("--autoencoder", type=click.Path(path_type=Path), default=Path("build/decoder"))
@click.option("--encoders", type=click.Path(path_type=Path), default=Path("build/grounding"))
@click.option("--transformer", type=click.Path(path_type=Path), default=Path("build/transformer"))
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/teacher"))
def main(autoencoder: Path, encoders: Path, transformer: Path, out: Path) -> None:
    """Saves the teacher."""
    save(assemble(autoencoder, encoders, transformer), out)


if __name__ == "__main__":
    main()
