"""The base model as a value: which folder, how its weights are held, what is fused into them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.styles import Lora

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """What `backbones.load` loads; params.yaml and a bundle's manifest both give one."""

    path: Path
    """A diffusers pipeline directory."""
    dtype: str = "fp32"
    """Of weights and latents, one of DTYPES."""
    quantization: str = "none"
    """Of the transformer's linear layers: "int8", "fp8", "nf4", or "none"."""
    loras: tuple[Lora, ...] = ()
    """Fused into the transformer, where that is loaded."""

    @classmethod
    def at(cls, path: str | Path) -> Teacher:
        """The model in a folder, in float32 and as it is."""
        return cls(path=Path(path))

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch's."""
        return DTYPES[self.dtype]
