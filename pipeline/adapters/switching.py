"""Activates adapters on a bare transformer, one per phase: as full weights, or as two products beside each layer.

Full weights are W + B A, rounded to the weights' type. In 16 bits this rounding loses much of a small change B A.
So the type of the base's weights decides (see `fuses`). Free memory decides nothing: it would change the images.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pipeline.adapters import adapted, check, delta, linear_shapes


class FusedAdapters:
    """Full weights per phase, W + B A, put in place by reference: no low-rank path, no copy at the handoff.

    Costs one more copy of the adapted weights per phase. If these copies are kept in main memory, a handoff copies the
    phase's weights to the transformer's present device. The transformer must carry no peft modules.
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
            home: Device that keeps the inactive weights; None = the transformer's present device.

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

    @torch.inference_mode(False)  # the new tensors outlast the caller's mode
    def select(self, name: str | None) -> None:
        """Puts a phase's weights in place; None is the base."""
        for parameter, weight in self._weights[name].items():
            parameter.data = weight.to(parameter.device)

    def close(self) -> None:
        """Puts the base's weights back."""
        self.select(None)


class _LowRank(nn.Module):
    """A linear layer and the A and B beside it: y + B A x in two products, the second summed into y.

    peft's module scales, adds and copies as well, which takes noticeable time beside small layers.
    """

    def __init__(self, base_layer: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.base_layer = base_layer
        empty = torch.empty(0, dtype=dtype, device=base_layer.weight.device)
        self.A, self.B = (nn.Parameter(empty, requires_grad=False) for _ in range(2))  # parameters, to move with W
        self.acts = False

    @property
    def weight(self) -> Tensor:
        """The base's weight, whose dtype embedders read."""
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.base_layer(x)
        if not self.acts:
            return y
        A, B = self.A.to(y.dtype), self.B.to(y.dtype)
        h = nn.functional.linear(x.to(y.dtype), A)
        return y.reshape(-1, y.shape[-1]).addmm_(h.reshape(-1, h.shape[-1]), B.t()).view(y.shape)


class LowRankAdapters:
    """Adapters beside the layers: no copy of any weight, at the cost of two small products per module and forward."""

    def __init__(
        self,
        transformer: nn.Module,
        states: Mapping[str, Mapping[str, Tensor]],
        home: torch.device | None = None,
    ):
        """Puts the adapters on the transformer, none active; arguments and errors as for FusedAdapters."""
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
        """Activates an adapter; None is the base."""
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
    return all(type(weight) is nn.Parameter and weight.is_floating_point() for weight in _linear_weights(transformer))


def fuses(transformer: nn.Module) -> bool:
    """Whether adapters act as full weights unless the caller chooses: if all linear weights have 32 bits or more."""
    return fusable(transformer) and all(weight.itemsize >= 4 for weight in _linear_weights(transformer))


def prepare(
    transformer: nn.Module,
    states: Mapping[str, Mapping[str, Tensor]],
    fused: bool | None = None,
    home: torch.device | None = None,
) -> FusedAdapters | LowRankAdapters:
    """Adapters ready to be selected; arguments and errors as for `acting`."""
    if fused and not fusable(transformer):
        raise ValueError("adapters cannot be fused into quantised weights: run the products beside the layers")
    chosen = fuses(transformer) if fused is None else fused
    return (FusedAdapters if chosen else LowRankAdapters)(transformer, states, home)


@contextmanager
def acting(
    transformer: nn.Module,
    states: Mapping[str, Mapping[str, Tensor]],
    fused: bool | None = None,
    home: torch.device | None = None,
) -> Iterator[Callable[[str | None], None]]:
    """Yields a function that activates one of `states`, or none; leaves the transformer bare at the end.

    Args:
        transformer: The base.
        states: One state with folded scale per name.
        fused: Whether to put full weights in place, or to run the products beside the layers; None = as `fuses` says.
        home: Device that keeps inactive weights, a backbone's `home`; None = the transformer's present device.

    Raises:
        ValueError: A state names a module that the transformer does not have, or one of another shape; or `fused` is
            set and the base is quantised.
    """
    prepared = prepare(transformer, states, fused, home)
    try:
        yield prepared.select
    finally:
        prepared.close()


def _linear_weights(transformer: nn.Module) -> list[Tensor]:
    return [layer.weight for layer in transformer.modules() if isinstance(layer, nn.Linear)]


def _check_all(transformer: nn.Module, states: Mapping[str, Mapping[str, Tensor]]) -> None:
    shapes = linear_shapes(transformer)
    for name, state in states.items():
        check(state, shapes, f"adapter {name}")
