"""Weight-only quantisation of a frozen transformer, through diffusers' own configurations."""

from importlib.util import find_spec

import torch
from diffusers import BitsAndBytesConfig, PipelineQuantizationConfig, TorchAoConfig

PACKAGES = {"int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes"}
"""The package that each kind needs."""


def config(kind: str, dtype: torch.dtype) -> PipelineQuantizationConfig:
    """What `from_pretrained` takes to quantise the transformer's linear layers as they are loaded.

    Args:
        kind: "int8", "fp8" (8 bits a weight) or "nf4" (4 bits).
        dtype: Of the products.

    Raises:
        ValueError: The package that the kind needs is not installed.
    """
    package = PACKAGES[kind]
    if find_spec(package) is None:
        raise ValueError(f"teacher.quantization {kind} needs {package}: pip install {package}")
    if kind == "nf4":
        quantizer = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    else:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

        quantizer = TorchAoConfig(Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig())
    return PipelineQuantizationConfig(quant_mapping={"transformer": quantizer})
