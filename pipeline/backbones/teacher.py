"""The base model as a value: its folder, the type of its weights, and the LoRAs fused into them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.styles import Lora

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The argument of `backbones.load`; params.yaml and a bundle's manifest both describe one."""

    path: Path
    """A diffusers pipeline directory."""
    dtype: str = "fp32"
    """Type of weights and latents, a key of DTYPES."""
    quantization: str = "none"
    """Quantisation of the transformer's linear layers: "int8", "fp8", "nf4", or "none"."""
    loras: tuple[Lora, ...] = ()
    """Fused into the transformer when the transformer is loaded."""

    @classmethod
    def at(cls, path: str | Path) -> Teacher:
        """The model in a folder, in float32, without quantisation or LoRAs."""
        return cls(path=Path(path))

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch's."""
        return DTYPES[self.dtype]

    @property
    def fuses(self) -> bool:
        """Whether adapters act as full weights on this model, as `switching.fuses` says once the model is loaded."""
        return self.quantization == "none" and self.torch_dtype.itemsize >= 4
