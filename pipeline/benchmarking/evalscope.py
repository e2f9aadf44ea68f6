"""Lists the images of an arm for EvalScope: a line of JSON per image, with `id`, `prompt` and `image_path`."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline import artifacts
from pipeline.benchmarking import manifest
from pipeline.evaluation.benchmarks.official import OfficialBenchmark


def write(benchmark: OfficialBenchmark, arm: str, file: Path) -> int:
    """Writes the list of an arm's images, whole; returns the number of images.

    Raises:
        ValueError: The arm has no images, or one of them is missing or damaged.
    """
    found = manifest.load(benchmark.name, arm)
    chosen = manifest.chosen(benchmark, found)
    manifest.verified(found, [index for index, _ in chosen])
    lines = [
        json.dumps(
            {
                "id": f"{item.id}_{number}",
                "prompt": item.prompt,
                "image_path": found.path(index, number).resolve().as_posix(),
            },
            ensure_ascii=False,
        )
        for index, item in chosen
        for number in range(found.seeds)
    ]
    with artifacts.atomic_file(file) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)
