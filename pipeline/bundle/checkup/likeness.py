"""Which family's layers the names in a LoRA file are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

import torch

from pipeline import adapters
from pipeline.adapters import lora_files, lora_names, lora_survey
from pipeline.adapters.lora_names import Target
from pipeline.adapters.lora_survey import Survey
from pipeline.backbones import FAMILIES, quiet_transformers

FOREIGN = {
    "Stable Diffusion 1, 2 or XL": re.compile(r"(down|up|mid|input|output|middle)_blocks?[._]"),
    "Stable Diffusion 3": re.compile(r"joint_blocks[._]"),
    "Wan": re.compile(r"(^|[._])blocks[._]\d+[._](self|cross)_attn[._]"),
    "FLUX.2": re.compile(r"to_qkv_mlp_proj|double_stream_modulation"),
}
"""Models that no family of this project is, by a mark in the names of their layers."""


@dataclass(frozen=True)
class Known:
    """A family's full-size transformer.

    Attributes:
        layers: The shapes of its linear layers.
        names: What the names in LoRA files stand for.
    """

    layers: Mapping[str, tuple[int, int]]
    names: Mapping[str, Target]


@cache
def families() -> dict[str, Known]:
    """The families by name, each with the layers of its class' own default configuration."""
    found = {}
    for module in import_module(FAMILIES).CLASSES.values():
        with quiet_transformers():
            backbone = import_module(f"{FAMILIES}.{module}").BACKBONE
        (transformer,) = backbone.pipeline_class._get_signature_types()["transformer"]
        with torch.device("meta"):
            layers = adapters.linear_shapes(transformer())
        found[backbone.family] = Known(layers, lora_names.known(layers, backbone.lora_names))
    return found


def nearest(file: str | Path) -> tuple[str | None, Survey]:
    """The family with a place for most of a file's tensors, and the survey of the file beside its full-size model.

    None in place of the family if each has a place for less than half of them.
    """
    keys = lora_files.keys(file)
    name, known = max(families().items(), key=lambda item: lora_survey.bound(keys, item[1].names))
    survey = lora_survey.survey(file, known.names, known.layers)
    return name if 2 * survey.bound >= survey.keys else None, survey


def foreign(survey: Survey) -> str | None:
    """A model outside of this project's families whose names of layers the file has; None if it is unknown."""
    return next((name for name, mark in FOREIGN.items() if any(map(mark.search, survey.unbound))), None)
