"""Manifests of earlier formats, step by step, as the format that is written today."""

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.bundle.parts import SUFFIX
from pipeline.bundle.schemas import FORMAT, schema
from pipeline.partition import PHASES


def current(content: Any, source: str) -> Any:
    """The content of a manifest of any format in format FORMAT; content of this format is returned as it is.

    Args:
        content: What a manifest or a header holds.
        source: Its name in the message.

    Raises:
        ValueError: The format is unknown, or a manifest of an earlier format lacks a key.
    """
    known = (*UPGRADES, FORMAT)
    number = content.get("format") if isinstance(content, Mapping) else None
    if number not in known or isinstance(number, bool):
        raise ValueError(f"{source}: format must be {', '.join(map(str, known[:-1]))} or {FORMAT}, got {number!r}")
    while number != FORMAT:
        try:
            content = UPGRADES[number](content)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{source} is not a complete manifest of format {number} ({error!r})") from error
        number = content["format"]
    return content


def _from_1(content: Mapping[str, Any]) -> dict[str, Any]:
    """Format 2: the phases, a mapping of slow and fast, are a list; `handoff` follows from them."""
    phases = [{"name": name, "file": name + SUFFIX, **content["phases"][name]} for name in PHASES]
    return {key: value for key, value in content.items() if key != "handoff"} | {"format": 2, "phases": phases}


def _from_2(content: Mapping[str, Any]) -> dict[str, Any]:
    """Format 3: sigmas of the whole path, the adapters' own licence, scale and retention are new.

    Keys that came during format 2 get the values of the time before. Keys of none of the formats are left out.
    """
    properties = schema()["properties"]
    named = properties["phases"]["items"]["properties"]
    phases = [{key: phase[key] for key in named} for phase in content["phases"]]
    starts = [level for phase in phases for level in phase["sigmas"][:-1]]
    added = {
        "format": FORMAT,
        "license": content["base_license"],
        "sigmas": [*starts, *phases[-1]["sigmas"][-1:]] if phases else [],
        "phases": phases,
        "handoffs": [{"step": one["steps"][0], "u": one["u"][0], "sigma": one["sigmas"][0]} for one in phases[1:]],
        "guidance": {"negative_prompt": "", **content["guidance"]},
        "scale": 1.0,
        "retention": None,
    }
    absent = {"loras": [], "path": "consistent", "solver": "euler"}
    return {key: value for key, value in (absent | dict(content) | added).items() if key in properties}


UPGRADES: dict[int, Callable[[Mapping[str, Any]], dict[str, Any]]] = {1: _from_1, 2: _from_2}
"""From each earlier format to the next one."""
