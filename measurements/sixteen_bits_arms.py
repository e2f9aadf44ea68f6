"""The ways to run a pair that `measurements.sixteen_bits` compares: what the transformer computes in, and what acts."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from pipeline import adapters
from pipeline.adapters import switching

States = Mapping[str, adapters.State]
Select = Callable[[str | None], None]


@contextmanager
def rounded_sums(transformer: nn.Module, states: States) -> Iterator[Select]:
    """Full weights that are rounded to bfloat16, on a transformer that computes in float32."""
    parameters = dict(transformer.named_parameters())
    names = {f"{module}.weight" for state in states.values() for module in adapters.adapted(state)}
    bare = {name: parameters[name].data for name in names}
    full = {
        phase: {
            f"{module}.weight": (bare[f"{module}.weight"] + adapters.delta(state, module)).bfloat16().float()
            for module in adapters.adapted(state)
        }
        for phase, state in states.items()
    }

    def select(phase: str | None) -> None:
        for name, weight in (bare | (full[phase] if phase else {})).items():
            parameters[name].data = weight

    yield select
    select(None)


@contextmanager
def rounded_factors(transformer: nn.Module, states: States) -> Iterator[Select]:
    """A and B that are rounded to bfloat16, beside the layers of a transformer that computes in float32."""
    rounded = {
        phase: {key: tensor.bfloat16().float() for key, tensor in state.items()} for phase, state in states.items()
    }
    with switching.acting(transformer, rounded, fused=False) as select:
        yield select


@contextmanager
def float32_products(transformer: nn.Module, states: States) -> Iterator[Select]:
    """A and B in float32 beside layers in 16 bits: B A x and its sum with W x are float32, rounded once at the end."""
    active: str | None = None

    def add(layer: nn.Module, args: tuple[Tensor], y: Tensor, module: str) -> Tensor:
        state = states[active] if active else {}
        if f"{module}.lora_A.weight" not in state:
            return y
        A, B = (state[f"{module}.lora_{side}.weight"] for side in "AB")
        h = nn.functional.linear(args[0].float(), A)
        return (y.float() + nn.functional.linear(h, B)).to(y.dtype)

    def select(phase: str | None) -> None:
        nonlocal active
        active = phase

    with ExitStack() as stack:
        for module in {module for state in states.values() for module in adapters.adapted(state)}:
            layer = transformer.get_submodule(module)
            stack.callback(layer.register_forward_hook(partial(add, module=module)).remove)
        yield select


@dataclass(frozen=True)
class How:
    """A way to run the pair."""

    dtype: str
    """What the transformer computes in."""
    acting: Callable[[nn.Module, States], AbstractContextManager[Select]]


REFERENCE = "float32, full weights"
ROUNDED = "float32, full weights rounded to bfloat16"
ROUNDED_FACTORS = "float32, beside the layers, A and B rounded to bfloat16"
FLOOR = "float32, no adapter"  # what the bare base in bfloat16 is compared with
FUSED = "bfloat16, full weights"
BESIDE = "bfloat16, beside the layers"
PRODUCTS = "bfloat16, beside the layers, products in float32"
BARE = "bfloat16, no adapter"
ARMS: dict[str, How] = {
    REFERENCE: How("fp32", partial(switching.acting, fused=True)),
    "float32, beside the layers": How("fp32", partial(switching.acting, fused=False)),
    ROUNDED: How("fp32", rounded_sums),
    ROUNDED_FACTORS: How("fp32", rounded_factors),
    FLOOR: How("fp32", lambda transformer, states: nullcontext(lambda phase: None)),
    FUSED: How("bf16", partial(switching.acting, fused=True)),
    BESIDE: How("bf16", partial(switching.acting, fused=False)),
    PRODUCTS: How("bf16", float32_products),
    BARE: How("bf16", lambda transformer, states: nullcontext(lambda phase: None)),
}
