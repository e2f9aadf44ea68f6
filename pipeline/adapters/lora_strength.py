"""An adapter's strength in peft's configuration: the factor before B A, layer by layer."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft.utils.other import get_pattern_key

HEADER = "lora_adapter_metadata"  # where diffusers' save_lora_weights keeps the configuration
COMPONENT = "transformer."  # prefix of the transformer's keys in a pipeline's configuration
CONFIG = "adapter_config.json"  # where peft keeps the configuration, beside the weights
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations of an adapter that change the base's weights too, so that B A alone is not the trained change."""
EXTRAS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "layer_replication",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "target_parameters",
    "modules_to_save",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)
"""Options of peft that make an adapter more than B A."""


@dataclass(frozen=True)
class Strength:
    """peft's configuration of an adapter.

    Attributes:
        entries: Its keys and values.
        source: What messages call the configuration.
    """

    entries: Mapping[str, Any]
    source: str

    def scale(self, layer: str, rank: int) -> float:
        """alpha / rank of a layer, or alpha / sqrt(rank) if rank-stabilised; a pattern for the layer goes first.

        Raises:
            ValueError: A value is no finite number, or the rank differs from the configuration's.
        """
        stated = self._of("rank_pattern", "r", layer)
        if stated is not None and stated != rank:
            raise ValueError(f"{self.source} gives {layer} the rank {stated}, its matrices have the rank {rank}")
        alpha = self._of("alpha_pattern", "lora_alpha", layer)
        if alpha is None:
            raise ValueError(f"{self.source} must hold lora_alpha, a number, got none")
        return alpha / (math.sqrt(rank) if self.entries.get("use_rslora") else rank)

    def _of(self, pattern: str, common: str, layer: str) -> float | None:
        """A layer's value: from the pattern that fits its name, else the common value."""
        patterns = self.entries.get(pattern) or {}
        try:
            key = get_pattern_key(patterns.keys(), layer)
        except (AttributeError, TypeError, re.error) as error:
            raise ValueError(f"{self.source}: {pattern} must map names of layers to numbers ({error})") from error
        name, value = (f"{pattern}.{key}", patterns[key]) if key in patterns else (common, self.entries.get(common))
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{self.source}: {name} must be a finite number, got {value!r}")
        return value


def in_header(header: Mapping[str, str], file: str) -> Strength | None:
    """The configuration in the header of a file that diffusers saved; None without one. Raises as `in_folder`."""
    if HEADER not in header:
        return None
    entries = _parsed(header[HEADER], f"{file}: {HEADER}")
    own = {key.removeprefix(COMPONENT): value for key, value in entries.items() if key.startswith(COMPONENT)}
    plain = {key: value for key, value in entries.items() if "." not in key}
    return _checked(own or plain, f"{file}: {HEADER}") if own or plain else None


def in_folder(folder: Path) -> Strength | None:
    """The configuration that peft saved beside the weights; None without one.

    Raises:
        ValueError: The configuration cannot be read, is no JSON object, or makes the adapter more than B A on the
            base's own weights.
    """
    file = folder / CONFIG
    if not file.is_file():
        return None
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read ({error})") from error
    return _checked(_parsed(text, str(file)), str(file))


def _parsed(text: str, source: str) -> dict[str, Any]:
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{source} is not JSON ({error})") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{source} must be a JSON object, got {text[:40]!r}")
    return entries


def _checked(entries: Mapping[str, Any], source: str) -> Strength:
    kind = entries.get("peft_type") or "LORA"
    if str(kind).upper() != "LORA":
        raise ValueError(f"{source}: peft_type must be LORA, got {kind!r}: only B A can be used")
    for option in EXTRAS:
        if entries.get(option):
            raise ValueError(
                f"{source} has {option}: {_shown(entries[option])}, so that the adapter is more than B A; "
                "train or export it without"
            )
    if entries.get("bias") not in (None, "none"):
        raise ValueError(f"{source} has bias: {_shown(entries['bias'])}, and a change of biases cannot be used")
    start = str(entries.get("init_lora_weights") or "").lower()
    if start.startswith(CHANGED_BASE):
        raise ValueError(
            f"{source} has init_lora_weights: {start}, which changed the base's weights too; convert it to a plain "
            "LoRA (peft's path_initial_model_for_weight_conversion) first"
        )
    return Strength(entries, source)


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:40]}..."
