"""Weight-only quantisation of a frozen transformer, through diffusers' own configurations."""

from importlib.util import find_spec
from typing import Any

import torch
from diffusers import BitsAndBytesConfig, PipelineQuantizationConfig, TorchAoConfig
from torch import Tensor, nn

PACKAGES = {"int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes"}
"""The package that each kind needs."""


def require(kind: str, device: torch.device) -> None:
    """Raises ValueError when the package that a kind needs is not installed, or the device cannot run it."""
    package = PACKAGES[kind]
    if find_spec(package) is None:
        raise ValueError(f"teacher.quantization {kind} needs {package}: pip install {package}")
    if kind == "nf4" and device.type == "cpu":
        raise ValueError("teacher.quantization nf4 needs a GPU, got the device cpu: int8 and fp8 run there as well")


def config(kind: str, dtype: torch.dtype) -> PipelineQuantizationConfig:
    """The argument of `from_pretrained` that quantises the transformer's linear layers at loading; see `require`.

    Args:
        kind: "int8", "fp8" (8 bits a weight) or "nf4" (4 bits).
        dtype: Type of the matrix products.
    """
    if kind == "nf4":
        quantizer = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    else:
        quantizer = TorchAoConfig(_torchao(kind))
    return PipelineQuantizationConfig(quant_mapping={"transformer": quantizer})


def replace_weight(layer: nn.Linear, weight: Tensor, kind: str) -> None:
    """Replaces the weight of a quantised layer by `weight`, quantised in the same way."""
    old: Any = layer.weight
    if kind == "nf4":
        settings = {name: getattr(old, name) for name in ("quant_type", "blocksize", "compress_statistics")}
        layer.weight = type(old)(weight.cpu(), requires_grad=False, **settings).to(old.device)
    else:
        from torchao import quantize_

        layer.weight = nn.Parameter(weight.to(old.device), requires_grad=False)
        quantize_(layer, _torchao(kind))


def _torchao(kind: str) -> Any:
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    return Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig()
