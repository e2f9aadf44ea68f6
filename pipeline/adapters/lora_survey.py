"""What a LoRA file holds, whether or not it can be used: nothing is refused but a file that cannot be opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pipeline.adapters import lora_files, lora_layouts, lora_names, lora_strength
from pipeline.adapters.lora_files import HALVES, KEY, TEXT_ENCODERS
from pipeline.adapters.lora_layouts import Layout
from pipeline.adapters.lora_names import Target


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The content of a LoRA file beside the layers of a base."""

    file: Path
    header: Mapping[str, str]
    """The texts of the header."""
    layout: Layout | None
    """None for a mix that no row of docs/lora_files.md has."""
    keys: int
    """Number of tensors."""
    bound: int
    """How many of them belong to a layer of the base."""
    unbound: tuple[str, ...]
    """The others, as the file spells them."""
    layers: int
    """How many layers of the base the bound ones change."""
    ranks: tuple[int, ...]
    """The ranks of the layers, sorted, each once."""
    alpha: str
    """Where alpha is: "nowhere", "tensors", "header" or "folder"."""
    scales: tuple[float, ...]
    """The factors before B A, sorted, each once; empty if they are unclear."""
    dtypes: Mapping[str, int]
    """The types of the tensors, with the number of each."""
    broken: tuple[str, ...]
    """The tensors with NaN or infinity."""
    pairs: int
    """How many pairs (A, B) the file has."""
    idle: int
    """How many of them change nothing, because A or B is 0."""


def survey(file: str | Path, names: Mapping[str, Target], layers: Mapping[str, tuple[int, int]]) -> Survey:
    """Reads a file as `lora_files.read` does, and counts.

    Args:
        file: A .safetensors file, or a folder that peft saved.
        names: What the names in a file stand for, see `lora_names.known`.
        layers: The linear layers of the base, see `adapters.linear_shapes`.

    Raises:
        ValueError: The file is missing or no safetensors file.
    """
    file = lora_files.weights(Path(file))
    tensors, header = lora_files.load(file)
    pairs, loose = _pairs(tensors)
    found = _layers(pairs, names)
    whole = {name: pair for name, pair in pairs.items() if {"A", "B"} <= pair.keys()}
    unbound = [key for name, pair in pairs.items() if found[name] is None for key in pair.values()] + loose
    alpha = _place_of_alpha(file, header, pairs)
    prefixes = Counter(lora_files.prefix(name) for name in pairs)
    naming = lora_layouts.naming(filter(None, found.values()), names, layers)
    mark = prefixes.most_common(1), _halves(tensors).most_common(1)
    return Survey(
        file=file,
        header=header,
        layout=lora_layouts.find(mark[0][0][0], mark[1][0][0], naming, alpha) if all(mark) else None,
        keys=len(tensors),
        bound=len(tensors) - len(unbound),
        unbound=tuple(unbound),
        layers=len({layer for name in found.values() if name is not None for layer in names[name].layers}),
        ranks=tuple(sorted({_rank(tensors[pair["A"]]) for pair in whole.values()})),
        alpha=alpha,
        scales=_scales(file, header, tensors, whole, found),
        dtypes=Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()),
        broken=tuple(key for key, tensor in tensors.items() if not tensor.float().isfinite().all()),
        pairs=len(whole),
        idle=sum(not all(tensors[pair[half]].float().any() for half in "AB") for pair in whole.values()),
    )


def bound(keys: Iterable[str], names: Mapping[str, Target]) -> int:
    """How many of a file's keys have a place, as `Survey.bound` says, without the tensors."""
    pairs, _ = _pairs(keys)
    found = _layers(pairs, names)
    return sum(len(pair) for name, pair in pairs.items() if found[name] is not None)


def _pairs(keys: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The keys of each layer by their role, "A", "B" or "alpha"; and the keys of no layer of a transformer."""
    pairs: dict[str, dict[str, str]] = {}
    loose = []
    for key in keys:
        match = KEY.fullmatch(key)
        if match is None or match["name"].startswith(TEXT_ENCODERS):
            loose.append(key)
        else:
            pairs.setdefault(match["name"], {})[HALVES[match["half"]] if match["half"] else "alpha"] = key
    return pairs, loose


def _layers(pairs: Iterable[str], names: Mapping[str, Target]) -> dict[str, str | None]:
    """The name in `names` of each layer that a file names; None without a place."""
    flat = {lora_names.flat(name): name for name in names}
    return {name: lora_files.layer_name(name, names, flat) for name in pairs}


def _halves(keys: Iterable[str]) -> Counter[str]:
    """How the keys of A end, with the number of each ending."""
    matches = filter(None, map(KEY.fullmatch, keys))
    ends = (
        f"{match['half']}{'.default' if match['adapter'] else ''}.weight"
        for match in matches
        if match["half"] and HALVES[match["half"]] == "A"
    )
    return Counter(ends)


def _rank(a: Tensor) -> int:
    return a.shape[0] if a.dim() else 0


def _place_of_alpha(file: Path, header: Mapping[str, str], pairs: Mapping[str, Mapping[str, str]]) -> str:
    """Where `lora_files.read` finds alpha."""
    if any("alpha" in pair for pair in pairs.values()):
        return "tensors"
    if lora_strength.HEADER in header:
        return "header"
    return "folder" if (file.parent / lora_strength.CONFIG).is_file() else "nowhere"


def _scales(
    file: Path,
    header: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    pairs: Mapping[str, Mapping[str, str]],
    found: Mapping[str, str | None],
) -> tuple[float, ...]:
    """The factor before B A of each pair, each factor once; none if the configuration cannot be used."""
    try:
        strength = lora_strength.in_header(header, str(file))
        if strength is None and any("alpha" not in pair for pair in pairs.values()):
            strength = lora_strength.in_folder(file.parent)
        scales = set()
        for name, pair in pairs.items():
            rank = _rank(tensors[pair["A"]])
            if "alpha" in pair:
                scales.add(float(tensors[pair["alpha"]].float().flatten()[0]) / rank)
            else:
                scales.add(strength.scale(found[name] or name, rank) if strength else 1.0)
    except (ValueError, ZeroDivisionError, IndexError):
        return ()
    return tuple(sorted(scales))
