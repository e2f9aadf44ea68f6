"""Trains the adapter of the fast phase on the teacher's path."""

from pipeline import artifacts
from pipeline.console import progress
from pipeline.params import Params
from pipeline.training import jobs, loop
from pipeline.training.data import TrainingData
from stages import stage_command


@stage_command("train_fast")
def main(params: Params) -> None:
    """Trains the adapter of the fast phase; a killed run goes on from its last checkpoint."""
    data = TrainingData.load()
    job = jobs.of_phase(params, data, "fast")
    loop.to_artifact(artifacts.TRAIN_FAST, {None: job}, data, params, progress)


if __name__ == "__main__":
    main()
