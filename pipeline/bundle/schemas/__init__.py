"""The contract of a bundle as a JSON schema, and values that are checked against the schema."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError

from pipeline.artifacts import read_json

FORMAT = 3
"""The version of the contract that is written; docs/contract.md describes its keys."""
FILE = Path(__file__).parent / f"glance-{FORMAT}.json"


@cache
def schema() -> dict[str, Any]:
    """The schema of the contract that is written."""
    return read_json(FILE)


def check(content: Any, source: str) -> None:
    """Refuses a value that is no contract of format FORMAT; `source` is its name in the message.

    Raises:
        ValueError: A key is missing, unknown, or has a wrong value; or a number is not finite. The message names the
            first such key, in the order of the schema.
    """
    try:
        json.dumps(content, allow_nan=False)
    except ValueError:
        raise ValueError(f"{source}: every number must be finite, got NaN or infinity") from None
    found = sorted(_validator().iter_errors(content), key=_place)
    if found:
        raise ValueError(f"{source}: {_sentence(_innermost(found[0]))}")


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(schema())


def _place(error: ValidationError) -> tuple[int, int, str]:
    """Unknown keys come first, then missing ones, then wrong values in the order of the schema."""
    kind = {"additionalProperties": 0, "required": 1}.get(error.validator, 2)
    keys = list(schema()["properties"])
    first = next(iter(error.absolute_path), None)
    return kind, keys.index(first) if first in keys else -1, error.json_path


def _innermost(error: ValidationError) -> ValidationError:
    """The error inside of the last choice of an `anyOf`, whose other choice is null."""
    inside = [one for one in error.context or [] if one.schema_path[0] != 0]
    return inside[0] if error.validator == "anyOf" and inside else error


def _sentence(error: ValidationError) -> str:
    """What the key must be, and its value."""
    key = _key(error)
    if error.validator == "required":
        missing = next(name for name in error.validator_value if name not in error.instance)
        return f"the key {_joined(key, missing)} is missing"
    if error.validator == "additionalProperties":
        unknown = next(name for name in error.instance if name not in error.schema["properties"])
        return f"the key {_joined(key, unknown)} is unknown in format {FORMAT}"
    rule = RULES[str(error.validator)](error.validator_value)
    return f"{key or 'the content'} must {rule}, got {_shown(error.instance)}"


TYPES = {
    "array": "a list",
    "integer": "a whole number",
    "null": "null",
    "number": "a number",
    "object": "a mapping",
    "string": "a text",
}
RULES: Mapping[str, Callable[[Any], str]] = {
    "const": lambda value: f"be {json.dumps(value)}",
    "enum": lambda values: f"be one of {', '.join(values)}",
    "exclusiveMinimum": lambda value: f"be above {value:g}",
    "maximum": lambda value: f"be at most {value:g}",
    "minimum": lambda value: f"be at least {value:g}",
    "minItems": lambda value: f"have {value} or more entries",
    "minLength": lambda value: f"have {value} or more letters",
    "pattern": lambda value: f"match {value}",
    "type": lambda kinds: "be " + " or ".join(TYPES[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds)),
}
"""What each keyword of the schema asks for, as words after "must"."""


def _key(error: ValidationError) -> str:
    """The key of an error, such as phases[0].sigmas; empty for the whole value."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
    return "".join(parts).removeprefix(".")


def _joined(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
