"""Which layers of a transformer the names in LoRA files stand for."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

NUMBER = "{}"
"""Stands for a block's number in the names of a family's table."""


@dataclass(frozen=True)
class Target:
    """The layers that one pair of matrices changes.

    Attributes:
        layers: In the order of B's rows: a fused matrix of a trainer holds several layers of diffusers.
        halves_swapped: The first half of B's rows belongs to the second half of the layer's, and the reverse.
    """

    layers: tuple[str, ...]
    halves_swapped: bool = False


def known(layers: Iterable[str], foreign: Mapping[str, Target]) -> dict[str, Target]:
    """Every dotted name that a trainer's file may give to layers of the transformer, with those layers.

    Args:
        layers: The linear layers of the transformer, named as diffusers names them.
        foreign: A family's other names, see `StockBackbone.lora_names`. Names of layers that the transformer lacks
            are left out.
    """
    layers = set(layers)
    names = {layer: Target((layer,)) for layer in layers}
    for name, target in foreign.items():
        for number in _numbers(layers, target.layers[0]):
            found = tuple(layer.replace(NUMBER, number) for layer in target.layers)
            if layers.issuperset(found):
                names[name.replace(NUMBER, number)] = Target(found, target.halves_swapped)
    return names


def flat(name: str) -> str:
    """A name as kohya, musubi, OneTrainer and LyCORIS write it: "a.0.b" is "a_0_b"."""
    return name.replace(".", "_")


def _numbers(layers: Iterable[str], pattern: str) -> list[str]:
    """The block numbers of the layers that a pattern names; one empty number for a pattern without a number."""
    if NUMBER not in pattern:
        return [""]
    expression = re.escape(pattern).replace(re.escape(NUMBER), r"(\d+)")
    return [match[1] for match in (re.fullmatch(expression, layer) for layer in layers) if match]
