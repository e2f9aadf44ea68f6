"""Trains the adapter of the slow phase on the teacher's path."""

from pipeline import artifacts
from pipeline.console import progress
from pipeline.params import Params
from pipeline.training import jobs, loop
from pipeline.training.data import TrainingData
from stages import stage_command


@stage_command("train_slow")
def main(params: Params) -> None:
    """Trains the adapter of the slow phase; a killed run goes on from its last checkpoint."""
    data = TrainingData.load()
    job = jobs.of_phase(params, data, "slow")
    loop.to_artifact(artifacts.TRAIN_SLOW, {None: job}, data, params, progress)


if __name__ == "__main__":
    main()
