"""One transformer per phase, each in a single file, for engines that load no LoRA and no folder."""

import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from torch import Tensor, nn

from pipeline import adapters, backbones
from pipeline.adapters.lora_names import Target
from pipeline.adapters.switching import FusedAdapters
from pipeline.artifacts import save_safetensors
from pipeline.bundle.formats.base import Format
from pipeline.bundle.formats.fused import CONFIG, TRANSFORMER
from pipeline.bundle.formats.stacking import authors_names, stacked_rows
from pipeline.bundle.manifest import MANIFEST, Bundle, bundle_digest

IMAGE, SINGLE = r"transformer_blocks\.(\d+)\.attn\.", r"single_transformer_blocks\.(\d+)\.attn\."
KEPT = (r".*", r"\g<0>")
OTHERS = {
    "flux": (
        (rf"{IMAGE}norm_q\.weight", r"double_blocks.\1.img_attn.norm.query_norm.scale"),
        (rf"{IMAGE}norm_k\.weight", r"double_blocks.\1.img_attn.norm.key_norm.scale"),
        (rf"{IMAGE}norm_added_q\.weight", r"double_blocks.\1.txt_attn.norm.query_norm.scale"),
        (rf"{IMAGE}norm_added_k\.weight", r"double_blocks.\1.txt_attn.norm.key_norm.scale"),
        (rf"{SINGLE}norm_q\.weight", r"single_blocks.\1.norm.query_norm.scale"),
        (rf"{SINGLE}norm_k\.weight", r"single_blocks.\1.norm.key_norm.scale"),
    ),
    "qwen_image": (KEPT,),
    "z_image": ((r"(.+\.attention)\.norm_([qk])\.weight", r"\1.\2_norm.weight"), KEPT),
}
"""By family: how parameters outside of linear layers are called in the authors' checkpoints, the first pattern that
fits. The names of linear layers come from the family's `lora_names`."""

log = logging.getLogger(__name__)


def write(bundle: Bundle, folder: Path) -> list[Path]:
    """Writes a file per phase, named by the bundle's digest, the transformer's configuration and the manifest.

    A weight is W + B A, summed in float32 and rounded once to the bundle's dtype, as in the format `fused`. The keys
    are those of the model's authors if `from_single_file` of diffusers turns them back into this transformer, else
    those of diffusers, which it loads as well.

    Raises:
        ValueError: `from_single_file` does not know the transformer's class; an adapter names a module that the base
            lacks, or one of another shape; or the base cannot be loaded.
    """
    base = bundle.base()
    backbone = backbones.load(base, "cpu", parts=("transformer",))
    transformer = backbone.transformer
    name = type(transformer).__name__
    if name not in SINGLE_FILE_LOADABLE_CLASSES:
        raise ValueError(f"--format fused-file needs from_single_file, which diffusers does not have for {name}")
    renamed = takes_back(transformer, bundle.family, backbone.lora_names)
    if not renamed:
        log.warning("diffusers cannot turn the authors' keys back into this transformer: the files keep its own keys")
    stem = f"glance-{bundle_digest(bundle.folder).removeprefix('sha256:')[:8]}"
    bundle.write_manifest(folder)
    shutil.copyfile(base.path / TRANSFORMER / CONFIG, folder / CONFIG)
    files = []
    for phase, state in bundle.states().items():
        fused = FusedAdapters(transformer, {phase: state})
        fused.select(phase)
        weights = transformer.state_dict()
        if renamed:
            weights = authors_state(weights, adapters.linear_shapes(transformer), bundle.family, backbone.lora_names)
        files.append(Path(f"{stem}-{phase}.safetensors"))
        save_safetensors(folder / files[-1], weights, {"format": "pt"})
        fused.close()
    return [Path(MANIFEST), Path(CONFIG), *files]


def authors_state(
    weights: Mapping[str, Tensor],
    layers: Mapping[str, tuple[int, int]],
    family: str,
    foreign: Mapping[str, Target],
) -> dict[str, Tensor]:
    """A transformer's parameters under the keys of the model's authors, several layers stacked in one where they are.

    Args:
        weights: Every parameter, under diffusers' keys.
        layers: The linear layers of the transformer.
        family: A key of OTHERS.
        foreign: The family's `lora_names`.

    Raises:
        ValueError: The authors have no name for a parameter.
    """
    found, rest = {}, dict(weights)
    for name, target in authors_names(layers, foreign).items():
        for kind in ("weight", "bias"):
            keys = [f"{layer}.{kind}" for layer in target.layers]
            if keys[0] in rest:
                found[f"{name}.{kind}"] = stacked_rows([rest.pop(key) for key in keys], target)
    for key, tensor in rest.items():
        found[_renamed(key, family)] = tensor
    return found


def _renamed(key: str, family: str) -> str:
    for pattern, replacement in OTHERS.get(family, ()):
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(replacement)
    raise ValueError(f"the authors' checkpoints of {family} have no name for {key}")


def takes_back(transformer: nn.Module, family: str, foreign: Mapping[str, Target]) -> bool:
    """Whether diffusers' own conversion of the authors' keys gives this transformer's keys and shapes, without data.

    It does not for a FLUX.1 of another width than the published one, for which the conversion is written.
    """
    wanted = {key: tuple(tensor.shape) for key, tensor in transformer.state_dict().items()}
    empty = {key: torch.empty(shape, device="meta") for key, shape in wanted.items()}
    convert = SINGLE_FILE_LOADABLE_CLASSES[type(transformer).__name__]["checkpoint_mapping_fn"]
    try:
        back = convert(authors_state(empty, adapters.linear_shapes(transformer), family, foreign))
    except (KeyError, IndexError, RuntimeError, ValueError):  # diffusers looks for keys or sizes that are not there
        return False
    return {key: tuple(tensor.shape) for key, tensor in back.items()} == wanted


FUSED_FILE = Format(
    name="fused-file",
    description="A file per phase with the whole transformer, for from_single_file and engines without LoRAs.",
    write=write,
)
