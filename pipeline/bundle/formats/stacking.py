"""Layers of diffusers as the matrices that the models' authors keep: several layers stacked in one, in their order."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pipeline import adapters
from pipeline.adapters import lora_names
from pipeline.adapters.lora_names import Target


def authors_names(layers: Iterable[str], foreign: Mapping[str, Target]) -> dict[str, Target]:
    """The name that the model's authors give to each matrix, with the layers in it; each layer is in one matrix.

    Args:
        layers: The linear layers of the transformer, named as diffusers names them.
        foreign: The family's `lora_names`. The first name of a layer is the authors'; those of other trainers follow.
            A layer without such a name keeps its own.
    """
    layers = sorted(layers)
    known = lora_names.known(layers, foreign)
    others = {name: target for name, target in known.items() if target != Target((name,))}
    free, found = set(layers), {}
    for name, target in others.items():
        if free.issuperset(target.layers):
            found[name] = target
            free.difference_update(target.layers)
    return found | {layer: Target((layer,)) for layer in layers if layer in free}


def stacked_rows(rows: Iterable[Tensor], target: Target) -> Tensor:
    """Weights (out, in) or biases (out,) of the target's layers as one tensor of the authors' matrix."""
    return _ordered(torch.cat(list(rows)), target)


def stacked_pair(state: adapters.State, target: Target, shapes: Mapping[str, tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """One A (rank, in) and one B (out, rank) with the changes of all layers of a target, exactly.

    A holds the different A of the layers, one below the other, and B is block-diagonal: its rank is the sum of their
    ranks. Layers that share their A, as in files of trainers that fuse these layers, share its rows again. The rows of
    a layer without a change are zero.

    Args:
        state: An adapter that changes at least one layer of the target.
        target: The layers of the matrix.
        shapes: (out, in) of every layer.
    """
    changed = [layer for layer in target.layers if f"{layer}.lora_A.weight" in state]
    starts: dict[str, int] = {}  # of a layer's own columns in B
    parts: list[Tensor] = []
    for layer in changed:
        a = state[f"{layer}.lora_A.weight"]
        same = next((other for other in starts if torch.equal(state[f"{other}.lora_A.weight"], a)), None)
        starts[layer] = starts[same] if same is not None else sum(map(len, parts))
        parts += [a] if same is None else []
    a = torch.cat(parts)
    blocks = []
    for layer in target.layers:
        block = a.new_zeros(shapes[layer][0], len(a))
        if layer in starts:
            b = state[f"{layer}.lora_B.weight"]
            block[:, starts[layer] : starts[layer] + b.shape[1]] = b
        blocks.append(block)
    return a, stacked_rows(blocks, target)


def _ordered(rows: Tensor, target: Target) -> Tensor:
    return torch.cat(rows.chunk(2)[::-1]) if target.halves_swapped else rows
