"""Reads the LoRA files of any trainer: every tensor is part of a change of weights, or the file is refused.

The layouts that are read, and who writes them, are listed in docs/lora_files.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline import adapters
from pipeline.adapters import lora_names, lora_strength
from pipeline.adapters.lora_names import Target
from pipeline.adapters.lora_strength import Strength

if TYPE_CHECKING:
    from pipeline.backbones.stock import StockBackbone

DOTTED = ("model.diffusion_model.", "diffusion_model.", "transformer.", "")
"""Prefixes of a layer's name; peft's own prefix may precede them."""
FLAT = ("lora_unet_", "lora_transformer_", "lycoris_")
"""Prefixes of a layer's name that is written with underscores."""
TEXT_ENCODERS = ("text_encoder", "text_model.", "lora_te", "te1.", "te2.", "te3.", "clip_l.", "clip_g.", "t5xxl.")
HALVES = {"lora_A": "A", "lora_down": "A", "lora.down": "A", "down": "A"} | {
    "lora_B": "B", "lora_up": "B", "lora.up": "B", "up": "B"
}  # fmt: skip
KEY = re.compile(
    rf"(?P<name>.+?)\.(?:(?P<half>{'|'.join(map(re.escape, HALVES))})(?:\.(?P<adapter>[^.]+))?\.weight|alpha)"
)
OTHER_KINDS = {
    "DoRA": re.compile(r"\.(dora_scale|lora_magnitude_vector)"),
    "LoKr": re.compile(r"\.lokr_"),
    "LoHa": re.compile(r"\.hada_"),
    "OFT": re.compile(r"\.b?oft_"),
}
ADDED = re.compile(r"\.(diff|diff_b|w_norm|b_norm|(lora_B|lora_up)(\.[^.]+)?\.bias)")
"""Tensors that some files add to a bias, a norm or a whole weight: without effect where they are zero."""


@dataclass(frozen=True)
class Pair:
    """The tensors of one layer in a file.

    Attributes:
        name: The layer, as the file spells it, with prefix.
        keys: Each tensor's name in the file, by its role: "A", "B", "alpha".
    """

    name: str
    keys: dict[str, str] = field(default_factory=dict)


def read(file: str | Path, backbone: StockBackbone) -> adapters.State:
    """The adapter in a LoRA file, its strength folded into B: keys "<layer>.lora_A/B.weight" of the transformer.

    Args:
        file: A .safetensors file in a layout of docs/lora_files.md, or a folder that peft saved.
        backbone: Its family and configuration say what the names mean; its weights need not be loaded.

    Raises:
        ValueError: The file is missing or no safetensors file; a tensor is no part of a LoRA of this transformer; a
            pair is not whole, not finite or of another shape than its layer; or its strength is unclear. The message
            spells the tensor as the file does.
    """
    file = weights(Path(file))
    tensors, texts = load(file)
    pairs = _pairs(tensors, file)
    strength = lora_strength.in_header(texts, str(file))
    if strength is None and any("alpha" not in pair.keys for pair in pairs):
        strength = lora_strength.in_folder(file.parent)
    base = f"the transformer of {backbone.path}"
    shapes = adapters.linear_shapes(backbone.skeleton())
    names = lora_names.known(shapes, backbone.lora_names)
    flat = {lora_names.flat(name): name for name in names}
    state: adapters.State = {}
    for pair in pairs:
        name = layer_name(pair.name, names, flat)
        if name is None:
            raise ValueError(f"{file} changes {pair.name}, which {base} does not have")
        a, b = _matrices(pair, tensors, file)
        for layer, rows in _split(names[name], a, b, shapes, pair, file, base).items():
            change = {"lora_A": a, "lora_B": rows * _scale(pair, tensors, strength, name, len(a), file)}
            _add(state, layer, change, pair, file)
    adapters.check_whole(state, str(file))
    return dict(sorted(state.items()))


def weights(file: Path) -> Path:
    """The file itself, or the weights in a folder of peft's layout. Raises ValueError for a folder without them."""
    inside = file / adapters.WEIGHTS
    if file.is_dir() and not inside.is_file():
        raise ValueError(f"{file} is a folder without {adapters.WEIGHTS}: name the .safetensors file")
    return inside if file.is_dir() else file


def load(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, and the texts of its header. Raises ValueError as `header` does."""
    with _opened(file) as opened:
        return {name: opened.get_tensor(name) for name in sorted(opened.keys())}, opened.metadata() or {}


def header(file: str | Path) -> dict[str, str]:
    """The texts in the header of a LoRA file, as `read` takes it.

    Raises:
        ValueError: The file is missing or no safetensors file, or a tensor has a type that torch does not know.
    """
    with _opened(weights(Path(file))) as opened:
        return opened.metadata() or {}


def keys(file: str | Path) -> list[str]:
    """The names of a LoRA file's tensors, as the file spells them, sorted. Raises ValueError as `header` does."""
    with _opened(weights(Path(file))) as opened:
        return sorted(opened.keys())


@contextmanager
def _opened(file: Path) -> Iterator[safe_open]:
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except FileNotFoundError as error:
        raise ValueError(f"{file} is missing") from error
    except SafetensorError as error:
        raise ValueError(f"{file} is no safetensors file ({error})") from error
    except (KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{file} holds a type of numbers that torch cannot read ({error})") from error


def _pairs(tensors: Mapping[str, Tensor], file: Path) -> list[Pair]:
    """The file's tensors by layer. A tensor outside of all pairs is refused, unless it changes nothing."""
    pairs: dict[str, Pair] = {}
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if match is None:
            _refuse_unless_idle(key, tensor, file)
            continue
        pair = pairs.setdefault(match["name"], Pair(match["name"]))
        kind = HALVES[match["half"]] if match["half"] else "alpha"
        if kind in pair.keys:
            raise ValueError(f"{file} has {key} beside {pair.keys[kind]}: a layer must have one A and one B")
        pair.keys[kind] = key
    for pair in pairs.values():
        for half in "AB":
            if half not in pair.keys:
                raise ValueError(f"{file} has {next(iter(pair.keys.values()))}, but no {half} of {pair.name}")
    own = [pair for pair in pairs.values() if not _idle_text_encoder(pair, tensors, file)]
    if not own:
        raise ValueError(f"{file} must hold a LoRA of the transformer, got none")
    prefixes = {prefix(pair.name): pair for pair in own}
    if len(prefixes) > 1:
        one, other = (pair.keys["A"] for pair in list(prefixes.values())[:2])
        raise ValueError(f"{file} must keep to one layout, got {one} and {other}")
    return own


def _refuse_unless_idle(key: str, tensor: Tensor, file: Path) -> None:
    """Refuses a tensor that is no half of a pair and no alpha, unless it is a change of zero."""
    for kind, pattern in OTHER_KINDS.items():
        if pattern.search(key):
            raise ValueError(f"{file} is a {kind} ({key}), not a LoRA: it is more than B A and cannot be used")
    if ADDED.search(key):
        if tensor.float().count_nonzero() == 0:
            return
        raise ValueError(f"{file} has {key}, a change that is no B A of a linear layer and cannot be used")
    raise ValueError(f"{file} has {key}, which is no A, B or alpha of a LoRA")


def _idle_text_encoder(pair: Pair, tensors: Mapping[str, Tensor], file: Path) -> bool:
    """Whether a pair belongs to a text encoder; refuses a pair that changes the encoder."""
    name = pair.name.removeprefix(adapters.PEFT_PREFIX)
    if not name.startswith(TEXT_ENCODERS):
        return False
    if all(tensors[pair.keys[half]].float().count_nonzero() for half in "AB"):
        raise ValueError(f"{file} must hold a LoRA of the transformer alone, got {pair.keys['A']}")
    return True


def prefix(name: str) -> str:
    """The prefix of a layer's name in a file: peft's own, then one of FLAT or DOTTED."""
    peft = adapters.PEFT_PREFIX if name.startswith(adapters.PEFT_PREFIX) else ""
    return peft + next(start for start in (*FLAT, *DOTTED) if name.removeprefix(peft).startswith(start))


def layer_name(name: str, names: Mapping[str, Target], flat: Mapping[str, str]) -> str | None:
    """A file's name of a layer without prefix and with dots; None where the transformer has no such layer."""
    start = prefix(name)
    rest = name.removeprefix(start)
    rest = flat.get(rest, "") if start.endswith(FLAT) else rest
    return rest if rest in names else None


def _matrices(pair: Pair, tensors: Mapping[str, Tensor], file: Path) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank) in float32; a 1 x 1 convolution loses the two dimensions of its window."""
    found = {}
    for half in "AB":
        key = pair.keys[half]
        tensor = tensors[key]
        if not tensor.is_floating_point():
            raise ValueError(f"{file}: {key} must hold floating-point numbers, got {tensor.dtype}")
        matrix = tensor.float()
        while matrix.dim() > 2 and matrix.shape[-1] == 1:
            matrix = matrix.squeeze(-1)
        if matrix.dim() != 2:
            raise ValueError(f"{file}: {key} must be a matrix, got the shape {tuple(tensor.shape)}")
        found[key] = matrix
    adapters.check_pair(found, str(file))
    a, b = found.values()
    return a, b


def _split(
    target: Target, a: Tensor, b: Tensor, shapes: Mapping[str, tuple[int, int]], pair: Pair, file: Path, base: str
) -> dict[str, Tensor]:
    """B's rows by layer."""
    rows = [shapes[layer][0] for layer in target.layers]
    shape, got = (sum(rows), shapes[target.layers[0]][1]), (len(b), a.shape[1])
    if got != shape:
        raise ValueError(f"{file} was trained for another base: {pair.name} must be {shape} as in {base}, got {got}")
    if target.halves_swapped:
        b = torch.cat(b.chunk(2)[::-1])
    return dict(zip(target.layers, b.split(rows), strict=True))


def _scale(
    pair: Pair, tensors: Mapping[str, Tensor], strength: Strength | None, layer: str, rank: int, file: Path
) -> float:
    """The factor before B A: from the file's own alpha, else from peft's configuration, else 1."""
    if "alpha" not in pair.keys:
        return strength.scale(layer, rank) if strength else 1.0
    key = pair.keys["alpha"]
    alpha = tensors[key]
    if alpha.numel() != 1 or alpha.is_complex() or not alpha.float().isfinite().all():
        got = float(alpha) if alpha.numel() == 1 else f"the shape {tuple(alpha.shape)}"
        raise ValueError(f"{file}: {key} must be one finite number, got {got}")
    return float(alpha) / rank


def _add(state: adapters.State, layer: str, change: Mapping[str, Tensor], pair: Pair, file: Path) -> None:
    """Puts a layer's A and B into a state; the same change twice, fused and split, counts once."""
    new = {f"{layer}.{side}.weight": matrix for side, matrix in change.items()}
    if f"{layer}.lora_A.weight" not in state:
        state |= new
    elif not torch.allclose(adapters.delta(state, layer), adapters.delta(new, layer), rtol=1e-4, atol=1e-7):
        raise ValueError(f"{file} changes {layer} twice, differently the second time by {pair.keys['A']}")
