"""The same workflow in the form that ComfyUI's page opens and saves: nodes with places, joined by numbered links."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.bundle.formats.comfyui.graph import Api

COLUMN, GAP, TOP = 340, 30, 60  # pixels of ComfyUI's canvas
WIDTH, ROW, HEAD, TEXT = 300, 24, 40, 120
SEED, SEED_CONTROL = "noise_seed", "fixed"  # a widget, and what the page does with its value after each image


@dataclass(frozen=True)
class Kind:
    """What ComfyUI declares of a node's class."""

    sockets: tuple[tuple[str, str], ...]
    """(name, type) of each input that a link fills, in order."""
    widgets: tuple[str, ...]
    """Names of the other inputs, in order."""
    outputs: tuple[tuple[str, str], ...]
    """(name, type) of each output."""


def _kind(sockets: str = "", widgets: str = "", outputs: str = "") -> Kind:
    """A class from lists of words; "samples:LATENT" is a name with its type, "MODEL" a name that is its type."""
    ins, outs = (tuple((name, kind or name) for name, _, kind in _pairs(words)) for words in (sockets, outputs))
    return Kind(ins, tuple(widgets.split()), outs)


def _pairs(words: str) -> list[tuple[str, str, str]]:
    return [word.partition(":") for word in words.split()]


KINDS: Mapping[str, Kind] = {
    "UNETLoader": _kind("", "unet_name weight_dtype", "MODEL"),
    "LoraLoaderModelOnly": _kind("model:MODEL", "lora_name strength_model", "MODEL"),
    "CLIPLoader": _kind("", "clip_name type device", "CLIP"),
    "DualCLIPLoader": _kind("", "clip_name1 clip_name2 type device", "CLIP"),
    "T5TokenizerOptions": _kind("clip:CLIP", "min_padding min_length", "CLIP"),
    "CLIPTextEncode": _kind("clip:CLIP", "text", "CONDITIONING"),
    "FluxGuidance": _kind("conditioning:CONDITIONING", "guidance", "CONDITIONING"),
    "VAELoader": _kind("", "vae_name", "VAE"),
    "ManualSigmas": _kind("", "sigmas", "SIGMAS"),
    "SplitSigmas": _kind("sigmas:SIGMAS", "step", "high_sigmas:SIGMAS low_sigmas:SIGMAS"),
    "KSamplerSelect": _kind("", "sampler_name", "SAMPLER"),
    "EmptySD3LatentImage": _kind("", "width height batch_size", "LATENT"),
    "RandomNoise": _kind("", "noise_seed", "NOISE"),
    "DisableNoise": _kind("", "", "NOISE"),
    "BasicGuider": _kind("model:MODEL conditioning:CONDITIONING", "", "GUIDER"),
    "CFGGuider": _kind("model:MODEL positive:CONDITIONING negative:CONDITIONING", "cfg", "GUIDER"),
    "SamplerCustomAdvanced": _kind(
        "noise:NOISE guider:GUIDER sampler:SAMPLER sigmas:SIGMAS latent_image:LATENT",
        "",
        "output:LATENT denoised_output:LATENT",
    ),
    "VAEDecode": _kind("samples:LATENT vae:VAE", "", "IMAGE"),
    "SaveImage": _kind("images:IMAGE", "filename_prefix", ""),
}
"""The classes that `graph.workflow` uses."""


def form(api: Api) -> dict[str, Any]:
    """The UI form of a workflow, version 0.4; each node stands in the column behind its farthest input."""
    places = _columns(api)
    heights: dict[int, int] = {}
    links: list[list[Any]] = []
    nodes: dict[str, dict[str, Any]] = {}
    for order, (key, node) in enumerate(api.items()):
        kind, column = KINDS[node["class_type"]], places[key]
        size = [WIDTH, _height(node, kind)]
        y = heights.get(column, TOP)
        heights[column] = y + size[1] + GAP + HEAD
        nodes[key] = {
            "id": int(key),
            "type": node["class_type"],
            "title": node["_meta"]["title"],
            "pos": [TOP + column * COLUMN, y],
            "size": size,
            "flags": {},
            "order": order,
            "mode": 0,
            "inputs": [{"name": name, "type": what, "link": None} for name, what in kind.sockets],
            "outputs": [{"name": name, "type": what, "links": []} for name, what in kind.outputs],
            "properties": {"Node name for S&R": node["class_type"]},
            "widgets_values": _values(node, kind),
        }
        for slot, (name, what) in enumerate(kind.sockets):
            source, output = node["inputs"][name]
            links.append([len(links) + 1, int(source), output, int(key), slot, what])
            nodes[key]["inputs"][slot]["link"] = len(links)
            nodes[source]["outputs"][output]["links"].append(len(links))
    return {
        "revision": 0,
        "last_node_id": len(api),
        "last_link_id": len(links),
        "nodes": list(nodes.values()),
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _columns(api: Api) -> dict[str, int]:
    """The length of the longest way to each node from one without inputs."""
    found: dict[str, int] = {}
    for key, node in api.items():
        sources = [value[0] for value in node["inputs"].values() if isinstance(value, list)]
        found[key] = 1 + max((found[source] for source in sources), default=-1)
    return found


def _values(node: Mapping[str, Any], kind: Kind) -> list[Any]:
    """The values of a node's widgets, in order; the page puts a widget of its own behind a seed."""
    values = []
    for name in kind.widgets:
        values.append(node["inputs"][name])
        if name == SEED:
            values.append(SEED_CONTROL)
    return values


def _height(node: Mapping[str, Any], kind: Kind) -> int:
    rows = max(len(kind.sockets), len(kind.outputs)) + len(kind.widgets) + (SEED in kind.widgets)
    return HEAD + ROW * rows + (TEXT if "text" in kind.widgets else 0)
