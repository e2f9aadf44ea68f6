"""Trains the adapters that only the comparison needs."""

from pipeline import artifacts, rivals, training
from pipeline.jobs import Job
from pipeline.params import Params
from pipeline.training_data import TrainingData
from stages import progress, stage_command


@stage_command("train_controls")
def main(params: Params) -> None:
    """Trains what the comparison needs beside the pair; a killed run goes on from its last checkpoint."""
    data = TrainingData.load()
    jobs: dict[str | None, Job] = {job.name: job for job in rivals.jobs(params, data)}
    training.to_artifact(artifacts.TRAIN_CONTROLS, jobs, data, params, progress)


if __name__ == "__main__":
    main()
