"""One evaluation: the stage's and the command's."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from pipeline.evaluation import comparison, inputs, prompts
from pipeline.evaluation.inputs import Source
from pipeline.params import Params
from pipeline.progress import Progress


def evaluate(params: Params, source: Source, folder: Path, progress: Progress) -> None:
    """Compares a pair with its teacher and its rivals; writes tables, pictures, the report and metrics.json.

    Args:
        params: All parameters.
        source: The pair.
        folder: Where the files go.
        progress: Shows how far it is.

    Raises:
        ValueError: As `inputs.read` and `prompts.exam` do.
    """
    teacher, settings = params.teacher, params.evaluation
    exam = prompts.exam(settings.prompts_file, settings.prompts, settings.seed, teacher.height, teacher.width)
    one = comparison.Comparison(inputs.read(params, source), exam, params)

    what = f"{one.draws.images} images of {len(one.arms)} arms"
    with progress(total=one.forwards, what=what, unit="forward") as bar:
        measured = one.measure(lambda arm, images: bar.update(arm.nfe * images))

    device = one.inputs.backbone.device

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    rounds = len(one.batches) * settings.latency_repeats
    with progress(total=rounds, what="timing the arms", unit="round") as bar:
        latencies = one.time(clock, bar.update)

    comparison.write(folder, one, one.metrics(measured, latencies), measured)
    one.forget()
