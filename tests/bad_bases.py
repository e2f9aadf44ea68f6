"""Teachers that the pipeline must refuse, and the sentence it must refuse each with."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from ruamel.yaml import YAML

Change = Callable[[dict], object]

BASES: dict[str, tuple[str, Change, str]] = {
    "epsilon": (
        "artifacts/teacher/scheduler/scheduler_config.json",
        lambda content: content.update(_class_name="DDIMScheduler", prediction_type="epsilon"),
        "the scheduler must be a FlowMatchEulerDiscreteScheduler, got DDIMScheduler; choose a flow-matching model",
    ),
    "v-prediction": (
        "artifacts/teacher/scheduler/scheduler_config.json",
        lambda content: content.update(_class_name="EulerDiscreteScheduler", prediction_type="v_prediction"),
        "the scheduler must be a FlowMatchEulerDiscreteScheduler, got EulerDiscreteScheduler; choose",
    ),
    "shift": (
        "artifacts/teacher/scheduler/scheduler_config.json",
        lambda content: content.update(use_dynamic_shifting=False, shift=0),
        "teacher/scheduler/scheduler_config.json: the scheduler's shift must be a number above 0, got 0",
    ),
    "transformer": (
        "artifacts/teacher/transformer/config.json",
        lambda content: content.update(_class_name="PixArtTransformer2DModel"),
        "the transformer of a FluxPipeline must be a FluxTransformer2DModel, got PixArtTransformer2DModel in ",
    ),
    "pipeline": (
        "artifacts/teacher/model_index.json",
        lambda content: content.update(_class_name="StableDiffusionXLPipeline"),
        "must be one of FluxPipeline, QwenImagePipeline, ZImagePipeline, got StableDiffusionXLPipeline",
    ),
    "quantiser": (
        "params.yaml",
        lambda content: content["teacher"].update(quantization="nf4"),
        "teacher.quantization nf4 needs ",  # bitsandbytes, and where that is there, a GPU
    ),
    "pixels": (
        "params.yaml",
        lambda content: content["teacher"].update(height=72),
        "teacher.height must be a positive multiple of 16 pixels, got 72; the nearest is 64",
    ),
}
"""By kind: the file, what is changed in it, the sentence."""

PARAMETERS = [kind for kind, (file, _, _) in BASES.items() if file == "params.yaml"]
if torch.cuda.is_available():
    del BASES["quantiser"]


def spoil(folder: Path, kind: str) -> str:
    """Makes a project's teacher a bad one, and returns the sentence."""
    file, change, sentence = BASES[kind]
    path = folder / file
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    else:
        content = YAML().load(path)
        change(content)
        YAML().dump(content, path)
    return sentence
