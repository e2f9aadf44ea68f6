"""One LoRA file per phase in the layout of sd-scripts, Forge and musubi-tuner."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from pipeline import adapters, backbones
from pipeline.adapters.lora_names import Target, flat
from pipeline.artifacts import save_safetensors
from pipeline.bundle.formats.base import Format
from pipeline.bundle.formats.stacking import authors_names, stacked_pair
from pipeline.bundle.header import KEY, carried
from pipeline.bundle.manifest import MANIFEST, Bundle, bundle_digest

PREFIX = "lora_unet_"
Names = Callable[[Mapping[str, tuple[int, int]], Mapping[str, Target]], Mapping[str, Target]]

log = logging.getLogger(__name__)


def own_names(shapes: Mapping[str, tuple[int, int]], foreign: Mapping[str, Target]) -> dict[str, Target]:
    """Each layer under the name that diffusers gives it."""
    return {layer: Target((layer,)) for layer in shapes}


@dataclass(frozen=True)
class Trainer:
    """How a family's trainer of this layout names things.

    Attributes:
        names: (shapes of the layers, the family's `lora_names`) -> the layers in each module of the trainer.
        module: The trainer's module for LoRA networks, as its files say.
        version: What its files call the base.
        passed_over: How the names of modules start that a tool does not read, by tool.
    """

    names: Names
    module: str
    version: str
    passed_over: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


OUTER = ("img_in", "txt_in", "time_in.", "vector_in.", "guidance_in.")
TRAINERS = {
    "flux": Trainer(
        authors_names,
        "networks.lora_flux",
        "flux1",
        {"sd-scripts": ("final_layer.",), "diffusers": ("final_layer.", *OUTER)},
    ),
    "qwen_image": Trainer(own_names, "networks.lora_qwen_image", "qwen_image"),
    "z_image": Trainer(own_names, "networks.lora_zimage", "z_image"),
}
"""The trainer of each family."""


def write(bundle: Bundle, folder: Path) -> list[Path]:
    """Writes a file per phase, named by the bundle's digest since all LoRAs often lie in one folder, and the manifest.

    Raises:
        ValueError: No trainer of this layout is known for the family, or an adapter changes a layer that the base does
            not have, or one of another shape.
    """
    if bundle.family not in TRAINERS:
        raise ValueError(
            f"--format kohya is for {', '.join(TRAINERS)}, and no trainer of it is known for {bundle.family}"
        )
    trainer = TRAINERS[bundle.family]
    backbone = backbones.load(bundle.base().path, "cpu", parts=())
    shapes = adapters.linear_shapes(backbone.skeleton())
    names = trainer.names(shapes, backbone.lora_names)
    stem = f"glance-{bundle_digest(bundle.folder).removeprefix('sha256:')[:8]}"
    bundle.write_manifest(folder)
    files = []
    for phase, state in bundle.states().items():
        adapters.check(state, shapes, f"adapter {phase}")
        content = tensors(state, names, shapes)
        files.append(Path(f"{stem}-{phase}.safetensors"))
        save_safetensors(folder / files[-1], content, header(content, trainer, bundle, phase))
    _name_the_rest(bundle, names, trainer)
    return [Path(MANIFEST), *files]


def tensors(
    state: adapters.State, names: Mapping[str, Target], shapes: Mapping[str, tuple[int, int]]
) -> dict[str, Tensor]:
    """An adapter in the layout: A and B of each module that it changes, and alpha = rank, since the scale is in B.

    Args:
        state: The adapter, with folded scale.
        names: The layers in each module.
        shapes: (out, in) of every layer.
    """
    changed = set(adapters.adapted(state))
    found: dict[str, Tensor] = {}
    for name, target in names.items():
        if changed.isdisjoint(target.layers):
            continue
        a, b = stacked_pair(state, target, shapes)
        key = PREFIX + flat(name)
        found |= {f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": b, f"{key}.alpha": torch.tensor(float(len(a)))}
    return found


def header(content: Mapping[str, Tensor], trainer: Trainer, bundle: Bundle, phase: str) -> dict[str, str]:
    """What the trainer's own files say of themselves, and the manifest with the phase: LoRA files travel alone."""
    ranks = {len(tensor) for key, tensor in content.items() if key.endswith(".lora_down.weight")}
    rank = str(*ranks) if len(ranks) == 1 else "Dynamic"  # the trainers' word for more than one
    return {
        "format": "pt",
        "ss_base_model_version": trainer.version,
        "ss_network_alpha": rank,
        "ss_network_dim": rank,
        "ss_network_module": trainer.module,
        KEY: carried(bundle, phase),
    }


def _name_the_rest(bundle: Bundle, names: Mapping[str, Target], trainer: Trainer) -> None:
    """Says which modules of the files a tool passes over."""
    changed = {layer for state in bundle.states().values() for layer in adapters.adapted(state)}
    inside = sorted(name for name, target in names.items() if not changed.isdisjoint(target.layers))
    for tool, starts in trainer.passed_over.items():
        lost = [name for name in inside if name.startswith(starts)]
        if lost:
            log.warning("%s passes over these modules of the files: %s", tool, ", ".join(lost))


KOHYA = Format(
    name="kohya",
    description="A LoRA file per phase in the layout of sd-scripts, Forge and musubi-tuner.",
    write=write,
)
