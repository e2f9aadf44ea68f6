"""LoRA sets on a backbone: y = (W + (alpha / rank) B A) x + b, one named set per phase.

A set at work is a state: {"<module>.lora_A.weight": (rank, in), "<module>.lora_B.weight": (out, rank)}. The modules are
peft's, so its formats and those of diffusers apply.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.artifacts import read_json, save_safetensors, write_json
from pipeline.backbones.base import Backbone

State = dict[str, Tensor]

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PEFT_PREFIX = "base_model.model."
DIFFUSERS_PREFIX = "transformer."


def add(backbone: Backbone, name: str, rank: int, alpha: float, targets: str, seed: int) -> LoraConfig:
    """Puts a new adapter on the backbone, active and the only thing that trains; it changes nothing yet.

    A ~ N(0, 1 / rank^2) as in the official recipe, drawn on the CPU module by module in the order of their names;
    B = 0. Both are float32, whatever the backbone's dtype.

    Args:
        backbone: Its `lora_targets` says what `targets` stands for.
        name: The adapter's name.
        rank: Columns of B and rows of A.
        alpha: The delta is (alpha / rank) B A.
        targets: A key of `backbone.lora_targets`.
        seed: Of A.

    Raises:
        ValueError: `targets` is no such key.
    """
    if targets not in backbone.lora_targets:
        known = ", ".join(backbone.lora_targets)
        raise ValueError(f"training.targets must be one of {known} for {backbone.family}, got {targets!r}")
    suffixes = tuple(f".{suffix}" for suffix in backbone.lora_targets[targets])
    modules = backbone.transformer.named_modules()
    foreign = [path for path, module in modules if f".{path}".endswith(suffixes) and not _linear(module)]
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


def parameters(transformer: nn.Module, name: str) -> list[nn.Parameter]:
    """The A and B of an adapter, in the order of the modules' names."""
    layers = sorted(_layers(transformer, name))
    return [matrix[name].weight for _, layer in layers for matrix in (layer.lora_A, layer.lora_B)]


def select(transformer: nn.Module, name: str | None) -> None:
    """Makes one adapter act, or none."""
    if name is None:
        transformer.disable_adapters()
    else:
        transformer.enable_adapters()
        transformer.set_adapter(name)


def merged_weights(transformer: nn.Module, name: str) -> dict[str, Tensor]:
    """W + (alpha / rank) B A of every adapted module, by parameter name; gradients reach A and B.

    For `torch.func.functional_call` with no adapter selected: one product per module instead of three, which at the
    widths and batches of a small transformer costs less than the low-rank path does.
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
    """The state whose delta at alpha = rank equals this one's at `alpha`: B times alpha / rank.

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
        ValueError: A file is missing, or one tensor is not a LoRA's.
    """
    folder = Path(folder)
    for file in (WEIGHTS, CONFIG):
        if not (folder / file).is_file():
            raise ValueError(f"{folder} is no adapter: {file} is missing")
    config = LoraConfig(**read_json(folder / CONFIG))
    tensors = strip_prefix(load_file(folder / WEIGHTS), PEFT_PREFIX, folder / WEIGHTS)
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


def load(transformer: nn.Module, name: str, folder: str | Path) -> None:
    """Puts a saved adapter on a transformer under `name`; raises as `read` does."""
    attach(transformer, name, read(folder)[0])


def attach(transformer: nn.Module, name: str, state: Mapping[str, Tensor]) -> None:
    """Puts a state with folded scale on a transformer under `name`, the way stock diffusers does, and selects it."""
    transformer.load_lora_adapter({DIFFUSERS_PREFIX + key: tensor for key, tensor in state.items()}, adapter_name=name)
    select(transformer, name)


def parameter_count(state: Mapping[str, Tensor]) -> int:
    """Numbers in an adapter."""
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


def check(
    state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]], owner: str, base: str = "the transformer"
) -> None:
    """Refuses an adapter that does not fit.

    Args:
        state: The adapter.
        shapes: Of the base, see linear_shapes.
        owner: What the adapter is called in the message.
        base: What the base is called there.

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


class FusedPhases:
    """Full weights per phase, W + B A, put in place by reference: no low-rank path, no copy at the handoff.

    Costs one more copy of the adapted weights per phase. Where those wait in main memory, beside a transformer that
    comes and goes, a handoff copies them to wherever it is then. The transformer must carry no peft modules.
    """

    def __init__(
        self,
        transformer: nn.Module,
        states: Mapping[str, Mapping[str, Tensor]],
        home: torch.device | None = None,
    ):
        """Computes the weights and leaves the base's own in place.

        Args:
            transformer: The base.
            states: One state with folded scale per name.
            home: Where the weights wait that are not at work; None = where the transformer is now.

        Raises:
            ValueError: A state names a module that the transformer does not have, or one of another shape.
        """
        _check_all(transformer, states)
        parameters = dict(transformer.named_parameters())
        base: dict[nn.Parameter, Tensor] = {}
        self._weights: dict[str | None, dict[nn.Parameter, Tensor]] = {None: base}
        for name, state in states.items():
            self._weights[name] = {}
            for module in adapted(state):
                weight = parameters[f"{module}.weight"]
                full = weight.data.float() + delta(state, module).to(weight.device)
                self._weights[name][weight] = full.to(home, weight.dtype)
                if weight not in base:
                    base[weight] = weight.data.to(home)
        for name in states:
            self._weights[name] = base | self._weights[name]  # two phases may adapt different modules

    @torch.inference_mode(False)  # what is put in place outlasts the caller's mode
    def select(self, name: str | None) -> None:
        """Puts a phase's weights in place; None is the base."""
        for parameter, weight in self._weights[name].items():
            parameter.data = weight.to(parameter.device)

    def close(self) -> None:
        """Puts the base's weights back."""
        self.select(None)


class _LowRank(nn.Module):
    """A linear layer and the A and B beside it: y + B A x in two products, the second summed into y.

    peft's module does the same with a scaling, an addition and copies of their own, which count beside small layers.
    """

    def __init__(self, base_layer: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.base_layer = base_layer
        empty = torch.empty(0, dtype=dtype, device=base_layer.weight.device)
        self.A, self.B = (nn.Parameter(empty, requires_grad=False) for _ in range(2))  # parameters, to move with W
        self.acts = False

    @property
    def weight(self) -> Tensor:
        """The base's, which embedders read the dtype of."""
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.base_layer(x)
        if not self.acts:
            return y
        A, B = self.A.to(y.dtype), self.B.to(y.dtype)
        h = nn.functional.linear(x.to(y.dtype), A)
        return y.reshape(-1, y.shape[-1]).addmm_(h.reshape(-1, h.shape[-1]), B.t()).view(y.shape)


class LowRankPhases:
    """Adapters beside the layers: no copy of any weight, at the cost of two small products per module and forward."""

    def __init__(
        self,
        transformer: nn.Module,
        states: Mapping[str, Mapping[str, Tensor]],
        home: torch.device | None = None,
    ):
        """Puts the adapters on the transformer, none at work; arguments and errors as for FusedPhases."""
        _check_all(transformer, states)
        self._transformer = transformer
        modules, dtype = dict(transformer.named_modules()), transformer.dtype
        self._layers = {
            module: _LowRank(modules[module], dtype)
            for module in sorted({module for state in states.values() for module in adapted(state)})
        }
        self._factors: dict[str | None, dict[str, list[Tensor]]] = {None: {}}
        for name, state in states.items():
            self._factors[name] = {
                module: [
                    state[f"{module}.lora_{side}.weight"].to(home or self._layers[module].A.device, dtype)
                    for side in "AB"
                ]
                for module in adapted(state)
            }
        for module, layer in self._layers.items():
            self._place(module, layer)

    @torch.inference_mode(False)
    def select(self, name: str | None) -> None:
        """Makes an adapter act; None is the base."""
        for module, layer in self._layers.items():
            factors = self._factors[name].get(module)
            layer.acts = factors is not None
            if factors is not None:
                layer.A.data, layer.B.data = (factor.to(layer.A.device) for factor in factors)

    def close(self) -> None:
        """Takes the adapters off."""
        for module, layer in self._layers.items():
            self._place(module, layer.base_layer)

    def _place(self, module: str, layer: nn.Module) -> None:
        parent, _, child = module.rpartition(".")
        setattr(self._transformer.get_submodule(parent), child, layer)


def fusable(transformer: nn.Module) -> bool:
    """Whether full weights of an adapter can be put in place: not where the base is quantised."""
    return all(
        type(layer.weight) is nn.Parameter and layer.weight.is_floating_point()
        for layer in transformer.modules()
        if isinstance(layer, nn.Linear)
    )


def phases(
    transformer: nn.Module,
    states: Mapping[str, Mapping[str, Tensor]],
    fused: bool = True,
    home: torch.device | None = None,
) -> FusedPhases | LowRankPhases:
    """Adapters ready to be selected, as full weights if `fused`, the base allows it and there is room for them.

    `home` as for FusedPhases.
    """
    place = home or next(transformer.parameters()).device
    fuse = fused and fusable(transformer) and copies(transformer, states) <= room(place)
    return (FusedPhases if fuse else LowRankPhases)(transformer, states, home)


def copies(transformer: nn.Module, states: Mapping[str, Mapping[str, Tensor]]) -> int:
    """Bytes that FusedPhases takes beside the base: the adapted weights once per phase."""
    weights = {name: weight.nbytes for name, weight in transformer.named_parameters()}
    return sum(weights.get(f"{module}.weight", 0) for state in states.values() for module in adapted(state))


def room(device: torch.device) -> float:
    """Bytes that may be taken of a GPU: what is free, but for a tenth of all that the forwards need; else no limit."""
    if device.type != "cuda":
        return math.inf
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + unused - total / 10


@contextmanager
def acting(
    transformer: nn.Module,
    states: Mapping[str, Mapping[str, Tensor]],
    fused: bool = True,
    home: torch.device | None = None,
) -> Iterator[Callable[[str | None], None]]:
    """Yields a function that makes one of `states`, or none, act; the transformer is left bare as it was found.

    Args:
        transformer: The base.
        states: One state with folded scale per name.
        fused: As full weights (see FusedPhases), unless the base is quantised; else beside the layers.
        home: Where weights wait that are not at work, a backbone's `home`; None = where the transformer is now.

    Raises:
        ValueError: A state names a module that the transformer does not have, or one of another shape.
    """
    ready = phases(transformer, states, fused, home)
    try:
        yield ready.select
    finally:
        ready.close()


def _check_all(transformer: nn.Module, states: Mapping[str, Mapping[str, Tensor]]) -> None:
    shapes = linear_shapes(transformer)
    for name, state in states.items():
        check(state, shapes, f"adapter {name}")


def _linear(module: nn.Module) -> bool:
    """Whether an adapter can go there: a linear layer, bare or with adapters already."""
    return isinstance(module.get_base_layer() if isinstance(module, LoraLayer) else module, nn.Linear)


def _layers(transformer: nn.Module, name: str) -> Iterator[tuple[str, LoraLayer]]:
    for path, module in transformer.named_modules():
        if isinstance(module, LoraLayer) and name in module.lora_A:
            yield path, module
