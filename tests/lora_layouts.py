"""LoRA files as trainers write them, for the small teachers, with the change of each weight that they mean."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipeline.families.flux import FluxBackbone
from pipeline.families.qwen_image import QwenImageBackbone
from pipeline.families.z_image import ZImageBackbone

FAMILIES = {"flux": FluxBackbone, "qwen_image": QwenImageBackbone, "z_image": ZImageBackbone}

FLUX_BLOCK = {  # the model's authors' names, and those of diffusers; several are fused, in this order of rows
    "double_blocks.0.img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "double_blocks.0.txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "double_blocks.0.img_attn.proj": ["attn.to_out.0"],
    "double_blocks.0.txt_attn.proj": ["attn.to_add_out"],
    "double_blocks.0.img_mlp.0": ["ff.net.0.proj"],
    "double_blocks.0.img_mlp.2": ["ff.net.2"],
    "double_blocks.0.txt_mlp.0": ["ff_context.net.0.proj"],
    "double_blocks.0.txt_mlp.2": ["ff_context.net.2"],
    "double_blocks.0.img_mod.lin": ["norm1.linear"],
    "double_blocks.0.txt_mod.lin": ["norm1_context.linear"],
}
FLUX_SINGLE = {
    "single_blocks.0.linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
    "single_blocks.0.linear2": ["proj_out"],
    "single_blocks.0.modulation.lin": ["norm.linear"],
}
XLABS_BLOCK = {
    "double_blocks.0.processor.qkv_lora1": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "double_blocks.0.processor.qkv_lora2": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "double_blocks.0.processor.proj_lora1": ["attn.to_out.0"],
    "double_blocks.0.processor.proj_lora2": ["attn.to_add_out"],
}
XLABS_SINGLE = {
    "single_blocks.0.processor.qkv_lora": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "single_blocks.0.processor.proj_lora": ["proj_out"],
}


def _within(block: str, names: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: [f"{block}.{layer}" for layer in layers] for name, layers in names.items()}


AUTHORS = {
    "flux": {
        "img_in": ["x_embedder"],
        "txt_in": ["context_embedder"],
        "time_in.in_layer": ["time_text_embed.timestep_embedder.linear_1"],
        "time_in.out_layer": ["time_text_embed.timestep_embedder.linear_2"],
        "vector_in.in_layer": ["time_text_embed.text_embedder.linear_1"],
        "vector_in.out_layer": ["time_text_embed.text_embedder.linear_2"],
        "guidance_in.in_layer": ["time_text_embed.guidance_embedder.linear_1"],
        "guidance_in.out_layer": ["time_text_embed.guidance_embedder.linear_2"],
        **_within("transformer_blocks.0", FLUX_BLOCK),
        **_within("single_transformer_blocks.0", FLUX_SINGLE),
        "final_layer.linear": ["proj_out"],
        "final_layer.adaLN_modulation.1": ["norm_out.linear"],
    },
    "z_image": {
        "x_embedder": ["all_x_embedder.2-1"],
        "layers.1.attention.qkv": [f"layers.1.attention.to_{x}" for x in "qkv"],
        "layers.1.attention.out": ["layers.1.attention.to_out.0"],
        "noise_refiner.0.attention.qkv": [f"noise_refiner.0.attention.to_{x}" for x in "qkv"],
        "context_refiner.0.attention.out": ["context_refiner.0.attention.to_out.0"],
        "layers.0.feed_forward.w2": ["layers.0.feed_forward.w2"],
        "final_layer.linear": ["all_final_layer.2-1.linear"],
        "final_layer.adaLN_modulation.1": ["all_final_layer.2-1.adaLN_modulation.1"],
    },
}
XLABS = {"flux": _within("transformer_blocks.0", XLABS_BLOCK) | _within("single_transformer_blocks.0", XLABS_SINGLE)}
SWAPPED = "final_layer.adaLN_modulation.1"  # of FLUX: shift and scale change places

DOWN_UP = "lora_down.weight", "lora_up.weight"
A_B = "lora_A.weight", "lora_B.weight"
DEFAULT = "lora_A.default.weight", "lora_B.default.weight"


@dataclass(frozen=True)
class Layout:
    """How a trainer names tensors, and how it says the strength.

    Attributes:
        families: Those that it is written for.
        prefix: Before each name.
        halves: After the name, for A and B.
        names: Names by family with the layers of diffusers in them; None = diffusers' own names, of every layer.
        flat: Whether dots in the names are underscores.
        alpha: Where the strength is said: "none", "tensors", "header" or "folder".
        stock: The families whose files stock diffusers reads, and the names that it reads wrongly or not at all.
    """

    families: tuple[str, ...]
    prefix: str
    halves: tuple[str, str]
    names: dict[str, dict[str, list[str]]] | None = None
    flat: bool = False
    alpha: str = "none"
    stock: dict[str, tuple[str, ...]] = field(default_factory=dict)


ALL = tuple(FAMILIES)
WHOLE = dict.fromkeys(ALL, ())
BOTH = {"qwen_image": (), "z_image": ()}
OUTER = tuple(name for name in AUTHORS["flux"] if not name.startswith(("double_blocks", "single_blocks")))
STOCK_KOHYA = {"flux": (*OUTER, "single_blocks.0.linear1")}  # one loses its prefix, the other is split for one width
LAYOUTS = {
    "diffusers": Layout(ALL, "transformer.", A_B, stock=WHOLE),
    "diffusers with metadata": Layout(ALL, "transformer.", A_B, alpha="header", stock=WHOLE),
    "diffusers names, kohya halves": Layout(ALL, "transformer.", DOWN_UP, alpha="tensors"),  # stock: without alpha
    "peft folder": Layout(ALL, "base_model.model.", A_B, alpha="folder"),
    "peft with the adapter's name": Layout(ALL, "base_model.model.", DEFAULT, alpha="folder"),
    "DiffSynth": Layout(ALL, "", DEFAULT, stock=BOTH),
    "Lightning": Layout(ALL, "", DOWN_UP, alpha="tensors", stock=BOTH),
    "peft without configuration": Layout(ALL, "base_model.model.", A_B),
    "bare names": Layout(ALL, "", A_B),  # stock: nothing is loaded
    "bare names, kohya halves": Layout(ALL, "", DOWN_UP),  # stock: nothing is loaded
    "bare names with alpha": Layout(ALL, "", A_B, alpha="tensors", stock=BOTH),
    "diffusers with alpha": Layout(ALL, "transformer.", A_B, alpha="tensors"),  # stock: refused
    "ai-toolkit": Layout(("qwen_image", "z_image"), "diffusion_model.", A_B, stock=BOTH),
    "OneTrainer": Layout(ALL, "lora_transformer_", DOWN_UP, flat=True, alpha="tensors"),
    "musubi": Layout(("qwen_image", "z_image"), "lora_unet_", DOWN_UP, flat=True, alpha="tensors", stock=BOTH),
    "LyCORIS": Layout(ALL, "lycoris_", DOWN_UP, flat=True, alpha="tensors"),
    "kohya": Layout(("flux", "z_image"), "lora_unet_", DOWN_UP, AUTHORS, flat=True, alpha="tensors", stock=STOCK_KOHYA),
    "ComfyUI": Layout(("flux", "z_image"), "diffusion_model.", A_B, AUTHORS),
    "ComfyUI, kohya halves": Layout(
        ("flux", "z_image"), "diffusion_model.", DOWN_UP, AUTHORS, alpha="tensors", stock=STOCK_KOHYA
    ),
    "fal": Layout(("flux",), "base_model.model.", A_B, AUTHORS),
    "XLabs": Layout(("flux",), "", ("down.weight", "up.weight"), XLABS, stock={"flux": ()}),
}
"""The rows of docs/lora_files.md."""
CASES = [(layout, family) for layout, row in LAYOUTS.items() for family in row.families]


@dataclass
class File:
    """A LoRA file: its tensors, what is said beside them, and the change of each weight that they mean."""

    tensors: dict[str, torch.Tensor]
    expected: dict[str, torch.Tensor]
    header: dict | None = None
    config: dict | None = None
    names: dict[str, str] = field(default_factory=dict)
    """The file's name of a pair, with prefix, by the name in the layout."""

    def write(self, folder: Path, name: str = "x.safetensors") -> Path:
        """Writes it, and the folder's configuration where there is one."""
        header = {"lora_adapter_metadata": json.dumps(self.header)} if self.header is not None else None
        save_file({key: tensor.clone().contiguous() for key, tensor in self.tensors.items()}, folder / name, header)
        if self.config is not None:
            (folder / "adapter_config.json").write_text(json.dumps(self.config), encoding="utf-8")
        return folder / name


def build(layout: str, family: str, shapes: dict[str, tuple[int, int]], without: tuple[str, ...] = ()) -> File:
    """A file of a layout with a pair for every name but some; ranks and alphas differ from layer to layer."""
    row = LAYOUTS[layout]
    names = row.names[family] if row.names else {layer: [layer] for layer in sorted(shapes)}
    names = {name: layers for name, layers in names.items() if layers[0] in shapes and name not in without}
    generator = torch.Generator().manual_seed(0)
    file, ranks, alphas = File({}, {}), {}, {}
    for place, (name, layers) in enumerate(names.items()):
        rank, alpha = 2 + place % 3, float(1 + place % 4)
        a = torch.randn(rank, shapes[layers[0]][1], generator=generator)
        b = torch.randn(sum(shapes[layer][0] for layer in layers), rank, generator=generator)
        own = row.prefix + (name.replace(".", "_") if row.flat else name)
        file.names[name] = own
        file.tensors |= {f"{own}.{row.halves[0]}": a, f"{own}.{row.halves[1]}": b}
        if row.alpha == "tensors":
            file.tensors[f"{own}.alpha"] = torch.tensor(alpha)
        ranks[name], alphas[name] = rank, alpha
        delta = (1.0 if row.alpha == "none" else alpha / rank) * b @ a
        if family == "flux" and name == SWAPPED:
            shift, scale = delta.chunk(2)
            delta = torch.cat([scale, shift])
        rows = delta.split([shapes[layer][0] for layer in layers])
        file.expected |= dict(zip(layers, rows, strict=True))
    said = _config(ranks, alphas)
    if row.alpha == "header":
        file.header = {f"transformer.{key}": value for key, value in said.items()}
    if row.alpha == "folder":
        file.config = said
    return file


def _config(ranks: dict[str, int], alphas: dict[str, float]) -> dict:
    """peft's configuration: the first layer's rank and alpha for all, patterns for those that differ."""
    r, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    return {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": alpha,
        "target_modules": sorted(ranks),
        "rank_pattern": {f"^{name}": rank for name, rank in ranks.items() if rank != r},
        "alpha_pattern": {f"^{name}": one for name, one in alphas.items() if one != alpha},
    }


def each(function: Callable) -> Callable:
    """Runs a test for every layout and family."""
    import pytest

    return pytest.mark.parametrize(("layout", "family"), CASES, ids=[f"{layout}-{f}" for layout, f in CASES])(function)
