"""A whole evaluation of any pair, with the same steps as the DVC stages take for the pipeline's own pair."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline import artifacts
from pipeline.evaluation import generation, inputs, outcome, timing
from pipeline.evaluation.images import ImageSet
from pipeline.evaluation.inputs import Source
from pipeline.evaluation.report import content, histories, page
from pipeline.evaluation.scores import scoring
from pipeline.params import Params
from pipeline.progress import Progress


def evaluate(params: Params, source: Source, folder: Path, progress: Progress) -> None:
    """Compares a pair with its teacher and its rivals; writes scores, times, tables, pictures and the report.

    The images are kept only in the cache.

    Args:
        params: All parameters.
        source: The pair.
        folder: Where the files go.
        progress: Shows the progress.

    Raises:
        ValueError: As `inputs.read` and `Inputs.load` do.
    """
    given = inputs.read(params, source)
    generation.generate(given, folder / "images", progress)
    images = ImageSet.load(folder / "images")
    scoring.score(params.evaluation, images, folder, progress)
    timing.time_arms(given, outcome.latency_file(folder), progress)
    losses = histories.read(artifacts.TRAIN_SLOW, artifacts.TRAIN_FAST, artifacts.TRAIN_CONTROLS)
    shown = {name: loss for name, loss in losses.items() if source.trained(name)}
    page.write(content.gather(params, images, folder, shown, source.trained_here), folder / "report.html")
    shutil.rmtree(images.folder)
