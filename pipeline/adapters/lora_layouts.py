"""The layouts of LoRA files by name, and which of them a file is in."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.adapters.lora_names import Target, flat

OWN, AUTHORS, XLABS = "diffusers", "authors", "XLabs"
"""Whose names of layers a file has: those of diffusers, of the model's authors (or close to them), or of XLabs."""
A, A_NAMED, DOWN = "lora_A.weight", "lora_A.default.weight", "lora_down.weight"


@dataclass(frozen=True)
class Layout:
    """A row of docs/lora_files.md.

    Attributes:
        name: The layout's name.
        prefix: Before the name of each layer.
        half: After it, in the keys of A.
        naming: OWN, AUTHORS or XLABS.
        alpha: Where alpha is: "nowhere", "tensors", "header" or "folder".
        writers: What writes such files.
    """

    name: str
    prefix: str
    half: str
    naming: str
    alpha: str
    writers: str


LAYOUTS = (
    Layout("diffusers", "transformer.", A, OWN, "nowhere", "diffusers, ai-toolkit (FLUX.1), SimpleTuner"),
    Layout("diffusers with metadata", "transformer.", A, OWN, "header", "`save_lora_weights` of current diffusers"),
    Layout("diffusers names, kohya halves", "transformer.", DOWN, OWN, "tensors", "converters"),
    Layout("peft folder", "base_model.model.", A, OWN, "folder", "peft's `save_pretrained`"),
    Layout(
        "peft with the adapter's name", "base_model.model.", A_NAMED, OWN, "folder", "peft state dicts saved by hand"
    ),
    Layout("DiffSynth", "", A_NAMED, OWN, "nowhere", "DiffSynth-Studio"),
    Layout("Lightning", "", DOWN, OWN, "tensors", "Qwen-Image-Lightning"),
    Layout("peft without configuration", "base_model.model.", A, OWN, "nowhere", "Qwen-Image-Distill of MusePublic"),
    Layout("bare names", "", A, OWN, "nowhere", "converters"),
    Layout("bare names, kohya halves", "", DOWN, OWN, "nowhere", "converters"),
    Layout("bare names with alpha", "", A, OWN, "tensors", "converters"),
    Layout("diffusers with alpha", "transformer.", A, OWN, "tensors", "converters"),
    Layout("ai-toolkit", "diffusion_model.", A, OWN, "nowhere", "ai-toolkit"),
    Layout("OneTrainer", "lora_transformer_", DOWN, OWN, "tensors", "OneTrainer, the full preset too"),
    Layout("musubi", "lora_unet_", DOWN, OWN, "tensors", "musubi-tuner"),
    Layout("LyCORIS", "lycoris_", DOWN, OWN, "tensors", "LyCORIS (algo `lora`)"),
    Layout("kohya", "lora_unet_", DOWN, AUTHORS, "tensors", "sd-scripts, Forge"),
    Layout("ComfyUI", "diffusion_model.", A, AUTHORS, "nowhere", "ComfyUI, ai-toolkit"),
    Layout(
        "ComfyUI, kohya halves",
        "diffusion_model.",
        DOWN,
        AUTHORS,
        "tensors",
        "ComfyUI's extraction of a difference",
    ),
    Layout("fal", "base_model.model.", A, AUTHORS, "nowhere", "fal's trainers"),
    Layout("XLabs", "", "down.weight", XLABS, "nowhere", "XLabs"),
)
"""The rows of docs/lora_files.md, in their order."""


def naming(names: Iterable[str], foreign: Mapping[str, Target], own: Iterable[str]) -> str:
    """Whose names the layers of a file have.

    Args:
        names: The file's names of layers, without prefix and with dots.
        foreign: Every name that `lora_names.known` gives.
        own: The layers as diffusers names them.
    """
    spelled = {flat(name) for name in own}  # some files have a dot where diffusers has an underscore
    others = [name for name in names if name in foreign and flat(name) not in spelled]
    if not others:
        return OWN
    return XLABS if any(".processor." in name for name in others) else AUTHORS


def find(prefix: str, half: str, naming: str, alpha: str) -> Layout | None:
    """The layout with these marks, wherever alpha is if no row has it there; None for a mix that no row has."""
    alike = [row for row in LAYOUTS if (row.prefix, row.half, row.naming) == (prefix, half, naming)]
    return next((row for row in alike if row.alpha == alpha), alike[0] if alike else None)
