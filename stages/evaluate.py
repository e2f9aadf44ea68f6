"""Measures on held-out prompts what the speed costs."""

import time

import torch

from pipeline import artifacts
from pipeline.evaluation import comparison, inputs, prompts
from pipeline.params import Params
from stages import progress, stage_command


@stage_command("evaluate")
def main(params: Params) -> None:
    """Compares the student with its teacher and its rivals; writes metrics, tables, pictures and the report."""
    teacher, settings = params.teacher, params.evaluation
    exam = prompts.exam(settings.prompts_file, settings.prompts, settings.seed, teacher.height, teacher.width)
    arms = comparison.Comparison(inputs.read(params), exam, params)

    what = f"{arms.draws.images} images of {len(arms.arms)} arms"
    with progress(total=arms.forwards, what=what, unit="forward") as bar:
        measured = arms.measure(lambda arm, images: bar.update(arm.nfe * images))

    device = arms.inputs.backbone.device

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    rounds = len(comparison.LATENCY_BATCHES) * (1 + settings.latency_repeats)
    with progress(total=rounds, what="timing the arms", unit="round") as bar:
        latencies = arms.time(clock, bar.update)

    comparison.write(artifacts.EVALUATION, arms, arms.metrics(measured, latencies), measured)
    arms.forget()


if __name__ == "__main__":
    main()
