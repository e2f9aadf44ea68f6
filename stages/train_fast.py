"""Trains the adapter of the fast phase on the teacher's path."""

from pipeline import artifacts, jobs, training
from pipeline.params import Params
from pipeline.training_data import TrainingData
from stages import progress, stage_command


@stage_command("train_fast")
def main(params: Params) -> None:
    """Trains the adapter of the fast phase; a killed run goes on from its last checkpoint."""
    data = TrainingData.load()
    job = jobs.of_phase(params, data, "fast")
    training.to_artifact(artifacts.TRAIN_FAST, {None: job}, data, params, progress)


if __name__ == "__main__":
    main()
