"""Bundles of each family whose adapters change every layer, to export."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from pipeline import adapters, backbones
from pipeline.bundle import importing
from pipeline.bundle.manifest import Bundle
from tests.recorded import small_params
from tests.tiny import make_tiny_flux, make_tiny_qwen_image, make_tiny_z_image

MAKERS = {
    "flux": lambda path: make_tiny_flux(path, guidance_embeds=True),
    "qwen_image": make_tiny_qwen_image,
    "z_image": make_tiny_z_image,
}
PHASES = {"slow": 2, "fast": 3}
"""The steps of each phase."""


def make_bundles(folder: Path) -> dict[str, Bundle]:
    """A bundle for each family under `folder`, with other numbers in each phase."""
    found = {}
    for family, make in MAKERS.items():
        teacher = make(folder / family / "teacher")
        shapes = shapes_of(teacher)
        files = {phase: folder / family / f"{phase}.safetensors" for phase in PHASES}
        for seed, file in enumerate(files.values()):
            save_file({f"transformer.{key}": one for key, one in random_state(shapes, seed).items()}, file)
        out = folder / family / "bundle"
        found[family] = importing.bundle(files, small_params(teacher), out, "uniform", PHASES)
    return found


def shapes_of(teacher: str | Path) -> dict[str, tuple[int, int]]:
    """(out, in) of the linear layers of a teacher's transformer."""
    return adapters.linear_shapes(backbones.load(teacher, "cpu", parts=()).skeleton())


def random_state(shapes: dict[str, tuple[int, int]], seed: int = 0, rank: int = 2) -> adapters.State:
    """A random A and B for every layer."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for layer, (rows, columns) in shapes.items():
        state[f"{layer}.lora_A.weight"] = torch.randn(rank, columns, generator=generator)
        state[f"{layer}.lora_B.weight"] = torch.randn(rows, rank, generator=generator)
    return state
