"""Trains the adapters that only the comparison needs."""

from pipeline import artifacts
from pipeline.console import progress
from pipeline.params import Params
from pipeline.training import loop, rivals
from pipeline.training.data import TrainingData
from pipeline.training.jobs import Job
from stages import stage_command


@stage_command("train_controls")
def main(params: Params) -> None:
    """Trains the control adapters; a killed run goes on from its last checkpoint."""
    data = TrainingData.load()
    jobs: dict[str | None, Job] = {job.name: job for job in rivals.jobs(params, data)}
    loop.to_artifact(artifacts.TRAIN_CONTROLS, jobs, data, params, progress)


if __name__ == "__main__":
    main()
