"""The workflow as a graph of ComfyUI's own nodes, in the form that its `/prompt` takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.bundle.formats.comfyui.models import Models
from pipeline.flow.guidance import forwards

Link = list[str | int]
"""[id of a node, number of one of its outputs]."""
Api = dict[str, dict[str, Any]]
"""The API form: {id: {"class_type", "inputs", "_meta"}}; an input is a value or a Link."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One phase: the next `steps` steps run with the LoRA of `file`."""

    name: str
    file: str
    steps: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a workflow does."""

    models: Models
    transformer: str
    """File of the base's transformer."""
    styles: tuple[tuple[str, float], ...]
    """(file, weight) of each LoRA that belongs to the base."""
    parts: tuple[Part, ...]
    """In order."""
    sigmas: tuple[float, ...]
    """Noise levels of the K starts, then 0, as the model is told them: ComfyUI does not shift them again."""
    prompt: str
    negative_prompt: str
    seed: int
    height: int
    width: int
    true_cfg_scale: float
    guidance_scale: float
    max_sequence_length: int
    name: str
    """What ComfyUI calls its image files."""


class _Graph:
    """Nodes in the order in which they were added, numbered from 1."""

    def __init__(self) -> None:
        self.api: Api = {}

    def add(self, kind: str, title: str | None = None, /, **inputs: Any) -> Link:
        """Adds a node of the class `kind` and returns its first output."""
        number = str(len(self.api) + 1)
        self.api[number] = {"class_type": kind, "inputs": inputs, "_meta": {"title": title or kind}}
        return [number, 0]


def workflow(run: Run) -> Api:
    """The API form of a run.

    One base, one list of noise levels. Each phase has its LoRA, its guider and its sampler, and goes on from the
    noisy latent of the phase before (the sampler's first output), to which no noise is added.
    """
    graph = _Graph()
    model = graph.add("UNETLoader", "Base", unet_name=run.transformer, weight_dtype="default")
    for file, weight in run.styles:
        model = graph.add("LoraLoaderModelOnly", "LoRA of the base", model=model, lora_name=file, strength_model=weight)
    conditionings = _conditionings(graph, run)
    vae = graph.add("VAELoader", vae_name=run.models.vae)
    levels = graph.add("ManualSigmas", "Noise levels", sigmas=", ".join(map(decimal, run.sigmas)))
    sampler = graph.add("KSamplerSelect", sampler_name="euler")
    latent = graph.add("EmptySD3LatentImage", width=run.width, height=run.height, batch_size=1)
    noise = graph.add("RandomNoise", noise_seed=run.seed)
    for number, part in enumerate(run.parts):
        if number == 1:
            noise = graph.add("DisableNoise")
        own, levels = levels, levels
        if number < len(run.parts) - 1:
            own = graph.add("SplitSigmas", f"Levels of {part.name} | later levels", sigmas=levels, step=part.steps)
            levels = [own[0], 1]
        adapted = graph.add(
            "LoraLoaderModelOnly", f"LoRA {part.name}", model=model, lora_name=part.file, strength_model=1.0
        )
        guider = _guider(graph, run, adapted, conditionings)
        latent = graph.add(
            "SamplerCustomAdvanced",
            f"Steps of {part.name}",
            noise=noise,
            guider=guider,
            sampler=sampler,
            sigmas=own,
            latent_image=latent,
        )
    image = graph.add("VAEDecode", samples=latent, vae=vae)
    graph.add("SaveImage", images=image, filename_prefix=run.name)
    return graph.api


def _conditionings(graph: _Graph, run: Run) -> list[Link]:
    """The conditioning of the prompt; with true CFG, then that of the negative prompt."""
    files, kind = run.models.text_encoders, run.models.text_type
    names = {f"clip_name{i}": file for i, file in enumerate(files, 1)} if len(files) > 1 else {"clip_name": files[0]}
    clip = graph.add("DualCLIPLoader" if len(files) > 1 else "CLIPLoader", **names, type=kind, device="default")
    if run.models.padded_text:  # ComfyUI pads to 256 tokens by itself
        clip = graph.add("T5TokenizerOptions", clip=clip, min_padding=0, min_length=run.max_sequence_length)
    texts = {"Prompt": run.prompt}
    if forwards(run.true_cfg_scale) == 2:
        texts["Negative prompt"] = run.negative_prompt
    found = [graph.add("CLIPTextEncode", title, clip=clip, text=text) for title, text in texts.items()]
    if run.models.embedded_guidance:
        found = [graph.add("FluxGuidance", conditioning=one, guidance=run.guidance_scale) for one in found]
    return found


def _guider(graph: _Graph, run: Run, model: Link, conditionings: Sequence[Link]) -> Link:
    if len(conditionings) == 1:
        return graph.add("BasicGuider", model=model, conditioning=conditionings[0])
    positive, negative = conditionings
    return graph.add("CFGGuider", model=model, positive=positive, negative=negative, cfg=run.true_cfg_scale)


def decimal(sigma: float) -> str:
    """A level in plain decimals that are exact in float32, ComfyUI's type; it misreads an exponent such as 1e-05."""
    return np.format_float_positional(np.float32(sigma), trim="-")
