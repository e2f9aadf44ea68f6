"""Makes a teacher's folder from a transformer in a single file and the other parts of a base."""

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline import backbones
from pipeline.artifacts import atomic_dir, files, link_or_copy, read_json

INDEX, TRANSFORMER = "model_index.json", "transformer"
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.")  # of the transformer beside other parts
SCALES = ("scale_weight", "weight_scale", "scaled_fp8", "scale_input", "input_scale")  # of weights in 8 bits


def assemble(checkpoint: Path, base: Path, out: Path) -> Path:
    """Writes a diffusers folder: the checkpoint's transformer, and hard links (else copies) of the base's other parts.

    Args:
        checkpoint: A .safetensors file with the keys of diffusers or of the model's authors, which ComfyUI uses too.
            Parts beside the transformer are ignored.
        base: The diffusers folder of a model of the same architecture.
        out: The folder to make; it appears whole.

    Raises:
        ValueError: `out` exists; the checkpoint cannot be read, or has other keys or shapes than the base; the base is
            of no known family, lacks a part, or has a link that leads nowhere or to its own folder.
    """
    if out.exists():
        raise ValueError(f"--out must not be there yet, got {out}")
    backbone = backbones.load(base, "cpu", parts=())
    others = _others(base)
    transformer = backbone.skeleton()
    state = _fitting(_read(checkpoint), transformer, checkpoint, base)
    transformer.load_state_dict(state, assign=True)
    with atomic_dir(out) as folder:
        transformer.save_pretrained(folder / TRANSFORMER)
        for name in others:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(base / name, folder / name)
    return out


def _others(base: Path) -> list[str]:
    """The files of all parts but the transformer; files and folders may be links."""
    names = [name for name in files(base) if not name.startswith(f"{TRANSFORMER}/")]
    parts = [name for name, entry in read_json(base / INDEX).items() if isinstance(entry, list) and any(entry)]
    for part in parts:
        if part != TRANSFORMER and not any(name.startswith(f"{part}/") for name in names):
            raise ValueError(f"{base / part} holds no file, but {base / INDEX} names it: restore the part")
    return names


def _read(checkpoint: Path) -> dict[str, Tensor]:
    """The transformer's tensors in a checkpoint, without prefix."""
    if checkpoint.suffix != ".safetensors":
        raise ValueError(f"CHECKPOINT must be a .safetensors file, got {checkpoint}")
    if not checkpoint.is_file():
        raise ValueError(f"{checkpoint} is missing")
    try:
        tensors = load_file(checkpoint)
    except SafetensorError as error:
        raise ValueError(f"{checkpoint} is no safetensors file ({error})") from error
    scaled = [key for key in tensors if key.endswith(SCALES)]
    if scaled:
        raise ValueError(f"{checkpoint} holds scaled 8-bit weights ({scaled[0]}): take the model's bf16 or fp16 file")
    for prefix in PREFIXES:
        inner = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        if inner:
            return inner
    return tensors


def _converted(tensors: dict[str, Tensor], transformer: nn.Module) -> dict[str, Tensor]:
    """Tensors with the authors' keys turned into diffusers' keys; unchanged where diffusers does not know the keys."""
    convert = SINGLE_FILE_LOADABLE_CLASSES[type(transformer).__name__]["checkpoint_mapping_fn"]
    try:
        return convert(dict(tensors))
    except (KeyError, IndexError, RuntimeError, ValueError):  # diffusers looks for keys that are missing
        return tensors


def _fitting(tensors: dict[str, Tensor], transformer: nn.Module, checkpoint: Path, base: Path) -> Mapping[str, Tensor]:
    """The tensors under diffusers' keys; plain 8-bit floats, in which nothing is computed, become bfloat16."""
    wanted = {key: tuple(tensor.shape) for key, tensor in transformer.state_dict().items()}
    tensors = min((tensors, _converted(tensors, transformer)), key=lambda state: len(state.keys() ^ wanted.keys()))
    lacking, foreign = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if len(lacking) == len(wanted):
        raise ValueError(f"{checkpoint} holds no transformer like that of {base}")
    if lacking or foreign:
        what = f"lacks {lacking[0]}" if lacking else f"has {foreign[0]}, which is not in {base}"
        count = f" ({len(lacking) + len(foreign)} keys differ)"
        raise ValueError(f"{checkpoint} is of another architecture than {base}: it {what}{count}")
    for key, shape in wanted.items():
        if tuple(tensors[key].shape) != shape:
            got = tuple(tensors[key].shape)
            raise ValueError(f"{checkpoint} is of another size than {base}: {key} must be {shape}, got {got}")
    small = {torch.float8_e4m3fn, torch.float8_e5m2}
    return {key: tensor.bfloat16() if tensor.dtype in small else tensor for key, tensor in tensors.items()}
