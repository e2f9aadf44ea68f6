"""The arithmetic of a transformer's forward: in the weights' dtype, or in bfloat16 where that is safe and fast."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.backbones.base import Backbone


def emulates_bfloat16() -> bool:
    """Whether this CPU has no arithmetic for bfloat16: a forward in it takes five times as long as in float32."""
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def effective(backbone: Backbone, precision: str) -> str:
    """The precision that is computed in: fp32 in place of bf16 on a CPU that would emulate bfloat16."""
    return "fp32" if backbone.device.type == "cpu" and emulates_bfloat16() else precision


def attention(backbone: Backbone, precision: str) -> AbstractContextManager:
    """Plain attention for bfloat16 on a CPU: its backward is several times as fast as the fused kernel's."""
    plain = effective(backbone, precision) == "bf16" and backbone.device.type == "cpu"
    return sdpa_kernel([SDPBackend.MATH]) if plain else nullcontext()


@contextmanager
def computing(backbone: Backbone, precision: str) -> Iterator[None]:
    """The arithmetic of the forward: in the weights' dtype, or in bfloat16 where that is safe.

    The embedders' outputs keep the weights' dtype. The residual stream is summed in this dtype, and diffusers rounds
    the timestep to it (in bfloat16, 987 would become 988).
    """
    if effective(backbone, precision) == "fp32":
        yield
        return
    with ExitStack() as stack:
        for module in backbone.transformer.children():
            if hasattr(module, "weight") and module.weight.ndim == 2:
                hook = module.register_forward_hook(lambda module, args, y: y.to(module.weight.dtype))
                stack.callback(hook.remove)
        stack.enter_context(torch.autocast(backbone.device.type, torch.bfloat16))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")  # a slower norm, no error
        yield
