"""Trains the adapter of the slow phase on the teacher's path."""

from pipeline import artifacts, jobs, training
from pipeline.params import Params
from stages import progress, stage_command


@stage_command("train_slow")
def main(params: Params) -> None:
    """Trains the adapter of the slow phase; a killed run goes on from its last checkpoint."""
    recorded = jobs.Recorded.load()
    job = jobs.of_phase(params, recorded, "slow")
    training.to_artifact(artifacts.TRAIN_SLOW, {None: job}, recorded, params, progress)


if __name__ == "__main__":
    main()
