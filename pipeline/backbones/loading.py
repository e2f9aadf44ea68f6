"""Loads a stock pipeline from a diffusers directory, whole or in parts."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import diffusers.utils.logging
import transformers.utils.logging
from diffusers import DiffusionPipeline

from pipeline import out_of_memory
from pipeline.backbones import quantization, weight_files
from pipeline.backbones.teacher import Teacher


def load(
    pipeline_class: type[DiffusionPipeline],
    teacher: Teacher,
    part_modules: Mapping[str, Sequence[str]],
    parts: Sequence[str],
) -> DiffusionPipeline:
    """The pipeline of a teacher's directory, in main memory.

    Args:
        pipeline_class: The pipeline's class in diffusers.
        teacher: The directory, and how its weights are held; its LoRAs are not read.
        part_modules: The sub-folders of each part.
        parts: Which parts to load; the modules of the others are None.

    Raises:
        ValueError: The weights of a part are only pickles, or do not fit the part's configuration.
    """
    options: dict[str, Any] = {name: None for part in part_modules if part not in parts for name in part_modules[part]}
    if teacher.quantization != "none" and "transformer" in parts:
        options["quantization_config"] = quantization.config(teacher.quantization, teacher.torch_dtype)
    loaded = [name for part in parts for name in part_modules[part]]
    with weight_files.plain(teacher.path, loaded) as folder:
        try:
            with _no_loading_bars():
                return pipeline_class.from_pretrained(
                    str(folder), dtype=teacher.torch_dtype, local_files_only=True, **options
                )
        except (OSError, RuntimeError, KeyError, AttributeError) as error:
            if out_of_memory.out_of_memory(error):
                raise
            said = " ".join(str(error).split()).replace(str(folder), str(teacher.path))[:300]
            raise ValueError(f"teacher: {teacher.path} cannot be loaded: {said}") from error


@contextmanager
def _no_loading_bars() -> Iterator[None]:
    """Hides the progress bars of transformers and diffusers."""
    libraries = [transformers.utils.logging, diffusers.utils.logging]
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
