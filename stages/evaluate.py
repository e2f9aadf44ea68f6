"""Measures the quality of every arm on the images of held-out prompts."""

from pipeline import artifacts
from pipeline.console import progress
from pipeline.evaluation.images import ImageSet
from pipeline.evaluation.scores import scoring
from pipeline.params import Params
from stages import stage_command


@stage_command("evaluate")
def main(params: Params) -> None:
    """Scores the images of every arm; writes metrics.json, the tables and a grid of pictures."""
    scoring.score(params.evaluation, ImageSet.load(artifacts.IMAGES), artifacts.EVALUATION, progress)


if __name__ == "__main__":
    main()
