"""Finds the files of vision-language models, and refuses wrong files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import artifacts, names
from pipeline.benchmarking.scorers import Weight

QWEN_VL = Weight(
    name="qwen2.5-vl-7b",
    hub="Qwen/Qwen2.5-VL-7B-Instruct@cc594898137f460bfe9f0759e9844b3ce807cfb5",
    licence="Apache-2.0",
)
QWEN_PACKAGES = ("torch", "torchvision", "transformers", "qwen-vl-utils", "pillow")
CLIP_FLANT5 = Weight(  # no commit is known: the values carry the digest of the files that were used
    name="clip-flant5-xxl", hub="zhiqiulin/clip-flant5-xxl@main", licence="Apache-2.0"
)
CLIP_CONFIG = Weight(
    name="clip-vit-large-patch14-336",
    hub="openai/clip-vit-large-patch14-336@ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
    file="config.json",
    licence="MIT",
)
FLAN_T5_TOKENIZER = Weight(
    name="flan-t5-xxl",
    hub="google/flan-t5-xxl@ae7c9136adc7555eeccc78cdd960dfd60fb346ce",
    file="tokenizer.json",
    licence="Apache-2.0",
)


def require(weight: Weight, place: Path, *files: str) -> None:
    """Refuses a path that is no folder with these files.

    Raises:
        ValueError: There is no such folder, or it lacks a file.
    """
    if not place.is_dir():
        raise ValueError(f"the weight {weight.name} must be a folder, got {place}{names.meant_path(place)}")
    for file in files:
        if not (place / file).is_file():
            held = ", ".join(sorted(path.name for path in place.iterdir())[:8])
            raise ValueError(f"the weight {weight.name} must hold {file}, got {place} with {held or 'no file'}")


def file_of(weight: Weight, place: Path) -> Path:
    """The only file of a weight, by its own path or by the path of its folder.

    Raises:
        ValueError: There is no such file.
    """
    found = place / Path(weight.file).name if place.is_dir() else place
    if not found.is_file():
        raise ValueError(f"the weight {weight.name} must be {weight.file}, got {place}{names.meant_path(place)}")
    return found


def read_json(weight: Weight, file: Path) -> dict[str, Any]:
    """Reads a configuration file of a weight.

    Raises:
        ValueError: The file is no JSON object.
    """
    try:
        content = artifacts.read_json(file)
    except ValueError as error:
        raise ValueError(f"the weight {weight.name}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"the weight {weight.name} must have a JSON object in {file}, got {type(content).__name__}")
    return content
