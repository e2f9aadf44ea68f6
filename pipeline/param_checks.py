"""Refuses a wrong key, type or range in a section of params.yaml, with one sentence per fault."""

import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import Field, field, fields
from functools import partial
from typing import Any, get_type_hints

from pipeline import names, styles
from pipeline.faults import RightValues, refusals, require_all
from pipeline.styles import Lora

LARGEST = 10**14  # bound of integers without their own: sizes are products of integers and must fit into 64 bits

TYPE_NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    float | None: "a number or null",
    str | None: "a text or null",
    tuple[str, ...]: "a list of texts",
    tuple[Lora, ...]: "a list of texts",
}


def number(*, at_least: float | None = None, above: float | None = None, at_most: float | None = None) -> Any:
    """The field of a section that holds a number in a range."""
    return field(metadata={"at_least": at_least, "above": above, "at_most": at_most})


def text(pattern: str, rule: str) -> Any:
    """The field of a section that holds a text matching a pattern; `rule` ends the sentence "<key> must ..."."""
    return field(metadata={"pattern": pattern, "rule": rule})


def parsed(read: Callable[[str, Any], Any]) -> Any:
    """The field of a section whose value `read(key, value)` checks and turns into the field's type."""
    return field(metadata={"read": read})


def check_section(name: str, cls: type, content: Any) -> tuple[Any, list[str]]:
    """A section as its dataclass, and one sentence per fault.

    Args:
        name: The section's name.
        cls: The dataclass. Each field has a type; a field made by `number` or `text` has a range or pattern too, one
            made by `parsed` a function of its own.
        content: The section as the file has it.

    Returns:
        The dataclass, or RightValues if there is a fault; and the sentences.
    """
    types = get_type_hints(cls)
    found, values = wrong_keys(name, types, content), {}

    def take(f: Field) -> None:
        values[f.name] = _value(f"{name}.{f.name}", f.metadata, types[f.name], content[f.name])

    found += refusals(partial(take, f) for f in fields(cls) if isinstance(content, dict) and f.name in content)
    return (RightValues(values) if found else cls(**values)), found


def wrong_keys(where: str, known: dict[str, Any], content: Any) -> list[str]:
    """One sentence per wrong key of a section or of the file. A misspelt key is not reported as missing too."""
    if not isinstance(content, dict):
        return [f"{where} must hold the keys {', '.join(known)}, got {_shown(content)}"]
    prefix = "" if where == "params.yaml" else f"{where}."
    missing = [key for key in known if key not in content]
    found = []
    for key in content:
        if key not in known:
            name = key if isinstance(key, str) and re.fullmatch(r"[\w-]+", key) else repr(key)
            hint = names.meant(key, missing)
            found.append(f"{prefix}{name} is not a parameter; {where} has {', '.join(known)}{hint}")
            missing = [other for other in missing if other != names.nearest(key, missing)]
    return found + [f"{prefix}{key} is missing from params.yaml" for key in missing]


def _value(key: str, rules: Mapping[str, Any], wanted: Any, value: Any) -> Any:
    """`value` as the wanted type, in range."""
    if "read" in rules:
        return rules["read"](key, value)
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
    fits = {
        bool: isinstance(value, bool),
        int: numeric and isinstance(value, int),
        float: numeric and abs(value) <= sys.float_info.max,  # refuses nan and inf
        float | None: value is None or numeric and abs(value) <= sys.float_info.max,
        str: isinstance(value, str),
        str | None: value is None or isinstance(value, str) and value != "",
        tuple[str, ...]: texts,
        tuple[Lora, ...]: texts,
    }
    if not fits[wanted]:
        raise ValueError(f"{key} must be {TYPE_NAMES[wanted]}, got {_shown(value)}")
    if value is None:
        return None
    least, above, most = (rules.get(rule) for rule in ("at_least", "above", "at_most"))
    if most is None and wanted is int:
        most = LARGEST
    if least is not None and (value < least or value == 0 and math.copysign(1, value) < 0):
        raise ValueError(f"{key} must be at least {least}, got {_shown(value)}")
    if above is not None and value <= above:
        raise ValueError(f"{key} must be above {above}, got {_shown(value)}")
    if most is not None and value > most:
        raise ValueError(f"{key} must be at most {most}, got {_shown(value)}")
    if "pattern" in rules and not re.fullmatch(rules["pattern"], value):
        raise ValueError(f"{key} must {rules['rule']}, got {value!r}")
    if wanted == tuple[Lora, ...]:
        return _loras(value)
    if wanted in (int, float, float | None):
        return int(value) if wanted is int else float(value)
    return tuple(value) if wanted == tuple[str, ...] else value


def _loras(texts: list[str]) -> tuple[Lora, ...]:
    require_all(partial(styles.parse, text) for text in texts)
    return tuple(map(styles.parse, texts))


def _shown(value: Any) -> str:
    """A value as a message shows it; Python refuses to write out an integer of thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)
