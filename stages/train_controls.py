"""Trains the adapters that only the comparison needs."""

from pipeline import artifacts, controls, training
from pipeline.jobs import Job, Recorded
from pipeline.params import Params
from stages import progress, stage_command


@stage_command("train_controls")
def main(params: Params) -> None:
    """Trains what the comparison needs beside the pair; a killed run goes on from its last checkpoint."""
    recorded = Recorded.load()
    jobs: dict[str | None, Job] = {job.name: job for job in controls.jobs(params, recorded)}
    training.to_artifact(artifacts.TRAIN_CONTROLS, jobs, recorded, params, progress)


if __name__ == "__main__":
    main()
