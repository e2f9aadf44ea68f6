"""Trains the adapter of the slow phase on the teacher's path."""

from pipeline import artifacts, jobs, training
from pipeline.params import Params
from pipeline.training_data import TrainingData
from stages import progress, stage_command


@stage_command("train_slow")
def main(params: Params) -> None:
    """Trains the adapter of the slow phase; a killed run goes on from its last checkpoint."""
    data = TrainingData.load()
    job = jobs.of_phase(params, data, "slow")
    training.to_artifact(artifacts.TRAIN_SLOW, {None: job}, data, params, progress)


if __name__ == "__main__":
    main()
