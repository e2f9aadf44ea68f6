"""LoRA sets on a backbone and in files: y = (W + (alpha / rank) B A) x + b, one named set per phase.

In memory a set is a state: {"<module>.lora_A.weight": (rank, in), "<module>.lora_B.weight": (out, rank)}. The modules
are peft's, so the formats of peft and of diffusers apply.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline import names
from pipeline.artifacts import read_json, save_safetensors, write_json

if TYPE_CHECKING:
    from pipeline.backbones.base import Backbone

State = dict[str, Tensor]

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PEFT_PREFIX = "base_model.model."
DIFFUSERS_PREFIX = "transformer."


def add(
    backbone: Backbone, name: str, rank: int, alpha: float, targets: str, seed: int, key: str = "training.targets"
) -> LoraConfig:
    """Puts a new adapter on the backbone: active, the only trainable part, and without effect yet.

    A ~ N(0, 1 / rank^2) as in the official recipe, drawn on the CPU module by module in the order of their names;
    B = 0. Both are float32, whatever the backbone's dtype.

    Args:
        backbone: Its `lora_targets` says what `targets` stands for.
        name: The adapter's name.
        rank: Columns of B and rows of A.
        alpha: The delta is (alpha / rank) B A.
        targets: A key of `backbone.lora_targets`.
        seed: Seed of the draw of A.
        key: The parameter that `targets` comes from, for the message.

    Raises:
        ValueError: `targets` is no such key.
    """
    check_targets(targets, backbone, key)
    named = targeted(backbone.transformer, backbone.lora_targets[targets])
    foreign = [path for path, module in named.items() if not _linear(module)]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(backbone.lora_targets[targets]),
        exclude_modules=foreign or None,  # an activation can have the name of another block's linear layer
    )
    backbone.transformer.add_adapter(config, name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, layer in sorted(_layers(backbone.transformer, name)):
            lora_A, lora_B = layer.lora_A[name].float(), layer.lora_B[name].float()
            lora_A.weight.copy_(torch.randn(lora_A.weight.shape, generator=generator) / rank)
            lora_B.weight.zero_()
    backbone.transformer.requires_grad_(False)
    for parameter in parameters(backbone.transformer, name):
        parameter.requires_grad_(True)
    return config


def check_targets(targets: str, family: Backbone | type[Backbone], key: str = "training.targets") -> None:
    """Raises ValueError, which names `key`, unless the family has modules to adapt under this name."""
    names.check(key, targets, family.lora_targets, where=f" for {family.family}")


def parameters(transformer: nn.Module, name: str) -> list[nn.Parameter]:
    """The A and B of an adapter, in the order of the modules' names."""
    layers = sorted(_layers(transformer, name))
    return [matrix[name].weight for _, layer in layers for matrix in (layer.lora_A, layer.lora_B)]


def select(transformer: nn.Module, name: str | None) -> None:
    """Activates one adapter, or none."""
    if name is None:
        transformer.disable_adapters()
    else:
        transformer.enable_adapters()
        transformer.set_adapter(name)


def merged_weights(transformer: nn.Module, name: str) -> dict[str, Tensor]:
    """W + (alpha / rank) B A of every adapted module, by parameter name; gradients reach A and B.

    For `torch.func.functional_call` with no adapter selected. One product per module instead of three costs less than
    the low-rank path at the widths and batches of a small transformer.
    """
    return {
        f"{path}.base_layer.weight": torch.addmm(
            layer.base_layer.weight, layer.lora_B[name].weight, layer.lora_A[name].weight, alpha=layer.scaling[name]
        )
        for path, layer in _layers(transformer, name)
    }


def state(transformer: nn.Module, name: str) -> State:
    """A copy of an adapter's A and B on the CPU, keys sorted."""
    tensors = get_peft_model_state_dict(transformer, adapter_name=name)
    return {key: tensors[key].detach().cpu().clone() for key in sorted(tensors)}


def fold_scale(state: Mapping[str, Tensor], alpha: float, rank: int) -> State:
    """The state with B times alpha / rank: its delta at alpha = rank is the given state's at `alpha`.

    diffusers drops alpha where a file has no metadata, and loads with scale 1.
    """
    return {key: tensor * (alpha / rank) if ".lora_B." in key else tensor for key, tensor in state.items()}


def save(folder: str | Path, state: Mapping[str, Tensor], config: LoraConfig) -> None:
    """Writes an adapter in peft's layout; equal adapters give equal bytes."""
    tensors = {PEFT_PREFIX + key: tensor for key, tensor in state.items()}
    save_safetensors(Path(folder) / WEIGHTS, tensors, {"format": "pt"})
    write_config(folder, config)


def write_config(folder: str | Path, config: LoraConfig) -> None:
    """Writes peft's adapter_config.json, with sets as sorted lists."""
    entries = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    write_json(Path(folder) / CONFIG, dict(sorted(entries.items())))


def read(folder: str | Path) -> tuple[State, LoraConfig]:
    """Reads an adapter in peft's layout: its state with the scale folded into B, and its configuration.

    Raises:
        ValueError: A file is missing, a tensor is not a LoRA's, or a pair is refused, see `check_whole`.
    """
    folder = Path(folder)
    for file in (WEIGHTS, CONFIG):
        if not (folder / file).is_file():
            raise ValueError(f"{folder} is no adapter: {file} is missing")
    config = LoraConfig(**read_json(folder / CONFIG))
    tensors = strip_prefix(load_file(folder / WEIGHTS), PEFT_PREFIX, folder / WEIGHTS)
    check_whole(tensors, str(folder / WEIGHTS))
    return fold_scale(tensors, config.lora_alpha, config.r), config


def strip_prefix(tensors: Mapping[str, Tensor], prefix: str, source: str | Path) -> State:
    """A file's tensors as a state.

    Raises:
        ValueError: A key is not "<prefix><module>.lora_A.weight" or "...lora_B.weight".
    """
    for key in tensors:
        if not key.startswith(prefix) or not key.endswith((".lora_A.weight", ".lora_B.weight")):
            raise ValueError(f"{source} must hold {prefix}<module>.lora_A/B.weight only, got {key!r}")
    return {key.removeprefix(prefix): tensors[key] for key in sorted(tensors)}


def parameter_count(state: Mapping[str, Tensor]) -> int:
    """Number of parameters of an adapter."""
    return sum(tensor.numel() for tensor in state.values())


def adapted(state: Mapping[str, Tensor]) -> list[str]:
    """The modules that an adapter changes, sorted."""
    return sorted(key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight"))


def delta(state: Mapping[str, Tensor], module: str) -> Tensor:
    """B A of one module, in float32, shape (out, in)."""
    return state[f"{module}.lora_B.weight"].float() @ state[f"{module}.lora_A.weight"].float()


def linear_shapes(transformer: nn.Module) -> dict[str, tuple[int, int]]:
    """(out, in) of every linear layer, by module."""
    return {
        name: (module.out_features, module.in_features)
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear)
    }


def check_whole(state: Mapping[str, Tensor], owner: str) -> None:
    """Refuses an adapter that is no set of finite pairs (A, B); `owner` is the adapter's name in the message.

    Raises:
        ValueError: An A has no B or the reverse, or a pair is refused, see `check_pair`.
    """
    for key in state:
        other = key.replace(".lora_A.", ".lora_B.") if ".lora_A." in key else key.replace(".lora_B.", ".lora_A.")
        if other not in state:
            raise ValueError(f"{owner} has {key}, but no {other}")
    for module in adapted(state):
        a, b = (f"{module}.lora_{side}.weight" for side in "AB")
        check_pair({a: state[a], b: state[b]}, owner)


def check_pair(pair: Mapping[str, Tensor], owner: str) -> None:
    """Refuses an A and a B whose product is no finite matrix.

    Args:
        pair: A, then B, under the names that the message gives them.
        owner: What A and B belong to, for the message.

    Raises:
        ValueError: A or B is no matrix, the ranks differ or are 0, or a number in A, B or their product is not finite.
    """
    (name_a, a), (name_b, b) = pair.items()
    sizes = tuple(a.shape), tuple(b.shape)
    if any(len(size) != 2 or 0 in size for size in sizes) or a.shape[0] != b.shape[1]:
        raise ValueError(
            f"{owner}: {name_a} and {name_b} must be (rank, in) and (out, rank) of one rank above 0, "
            f"got {sizes[0]} and {sizes[1]}"
        )
    for name, matrix in pair.items():
        if not matrix.isfinite().all():
            raise ValueError(f"{owner}: {name} must hold finite numbers, got NaN or infinity")
    largest = float(a.abs().max()) * float(b.abs().max()) * a.shape[0]
    if largest > torch.finfo(torch.float32).max:
        raise ValueError(f"{owner}: {name_b} times {name_a} must be finite, got numbers of up to {largest:.0e}")


def check(
    state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]], owner: str, base: str = "the transformer"
) -> None:
    """Refuses an adapter that does not fit.

    Args:
        state: The adapter.
        shapes: Shapes of the base's layers, see linear_shapes.
        owner: What the adapter is called in the message.
        base: What the base is called in the message.

    Raises:
        ValueError: The adapter changes a module that the base does not have, or one of another shape.
    """
    for module in adapted(state):
        if module not in shapes:
            raise ValueError(f"{owner} changes {module}, which {base} does not have")
        shape = (state[f"{module}.lora_B.weight"].shape[0], state[f"{module}.lora_A.weight"].shape[1])
        if shape != shapes[module]:
            raise ValueError(
                f"{owner} was trained for another base: {module} must be {shapes[module]} as in {base}, got {shape}"
            )


def targeted(transformer: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """The modules whose path ends with one of the names, by path; only the linear ones of them get an adapter."""
    suffixes = tuple(f".{name}" for name in names)
    return {path: module for path, module in transformer.named_modules() if f".{path}".endswith(suffixes)}


def _linear(module: nn.Module) -> bool:
    """Whether a module can carry an adapter: a linear layer, bare or with adapters already."""
    return isinstance(module.get_base_layer() if isinstance(module, LoraLayer) else module, nn.Linear)


def _layers(transformer: nn.Module, name: str) -> Iterator[tuple[str, LoraLayer]]:
    for path, module in transformer.named_modules():
        if isinstance(module, LoraLayer) and name in module.lora_A:
            yield path, module
