"""One transformer per phase, in the layout of diffusers, for tools that load no LoRA."""

import shutil
from pathlib import Path

from huggingface_hub import split_torch_state_dict_into_shards
from torch import nn

from pipeline import adapters, backbones
from pipeline.adapters.switching import FusedAdapters
from pipeline.artifacts import save_safetensors, write_json
from pipeline.bundle.formats.base import Format
from pipeline.bundle.manifest import Bundle

TRANSFORMER, CONFIG = "transformer", "config.json"
WEIGHTS = "diffusion_pytorch_model{suffix}.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
SHARD = "10GB"  # as diffusers splits


def write(bundle: Bundle, folder: Path) -> list[Path]:
    """Writes <phase>/transformer of each phase, and the manifest, which has the levels and the phases.

    A weight is W + B A, where W includes the bundle's LoRAs. The sum is computed in float32 and rounded once to the
    bundle's dtype. In float32, `generating.generate` computes with the same weights. In bfloat16 the rounding loses
    small changes, which `generating.generate` keeps.

    Raises:
        ValueError: An adapter names a module that the base lacks, or one of another shape; or the base cannot be
            loaded.
    """
    bundle.write_manifest(folder)
    base = bundle.base()
    transformer = backbones.load(base, "cpu", parts=("transformer",)).transformer
    for phase, state in bundle.states().items():
        place = folder / phase / TRANSFORMER
        place.mkdir(parents=True)
        shutil.copyfile(base.path / TRANSFORMER / CONFIG, place / CONFIG)
        _save_adapted(transformer, phase, state, place)
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _save_adapted(transformer: nn.Module, phase: str, state: adapters.State, place: Path) -> None:
    """Writes the transformer's weights with an adapter fused in, as diffusers does: one file, or several with an index.

    The adapted weights are copied for one phase at a time: N at once would take N + 1 times the base's memory.
    """
    fused = FusedAdapters(transformer, {phase: state})
    fused.select(phase)
    weights = transformer.state_dict()
    split = split_torch_state_dict_into_shards(weights, filename_pattern=WEIGHTS, max_shard_size=SHARD)
    for name, keys in split.filename_to_tensors.items():
        save_safetensors(place / name, {key: weights[key] for key in keys}, {"format": "pt"})
    if split.is_sharded:
        write_json(place / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
    fused.close()


FUSED = Format(
    name="fused",
    description="<phase>/transformer of each phase: the base's weights with the phase's change, for diffusers.",
    write=write,
)
