"""Latents as tokens of 2 x 2, and sequences of one length: pure functions over tensors."""

from collections.abc import Sequence

import torch
from diffusers import FluxPipeline
from torch import Tensor


def pack(latents: Tensor) -> Tensor:
    """(B, C, 2 rows, 2 columns) -> (B, rows * columns, 4 C)."""
    return FluxPipeline._pack_latents(latents, *latents.shape)


def unpack(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, rows * columns, 4 C) -> (B, C, 2 rows, 2 columns)."""
    rows, columns = grid
    return FluxPipeline._unpack_latents(x, 2 * rows, 2 * columns, vae_scale_factor=1)


def pad(sequences: Sequence[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Sequences (L_i, D) padded with zeros to (B, length, D), and the mask of their own tokens, bool (B, length)."""
    padded = sequences[0].new_zeros(len(sequences), length, sequences[0].shape[1])
    mask = torch.zeros(len(sequences), length, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = True
    return padded, mask
