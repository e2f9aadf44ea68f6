"""Trains the adapters that only the comparison needs."""

import shutil
from functools import partial

from pipeline import anchors, artifacts, controls, training
from pipeline.params import Params
from pipeline.partition import Partition
from pipeline.trajectories import Trajectories
from stages import progress, stage_command


@stage_command("train_controls")
def main(params: Params) -> None:
    """Trains what the comparison needs beside the pair; a killed run goes on from its last checkpoint."""
    jobs = controls.jobs(params, Partition.from_json(artifacts.read_json(artifacts.PARTITION)))
    trajectories = Trajectories(artifacts.TRAJECTORIES)
    keys = [training.key(job, artifacts.TRAJECTORIES, artifacts.ANCHORS) for job in jobs]
    checkpoints = [artifacts.checkpoint_dir("train_controls", key) for key in keys]
    anchored, backbone = anchors.load(), training.load_teacher(params)

    histories = {}
    with artifacts.atomic_dir(artifacts.TRAIN_CONTROLS) as folder:
        for job, checkpoint in zip(jobs, checkpoints, strict=True):
            bar = partial(progress, total=job.settings.train_steps, what=f"training {job.name}", unit="step")
            histories[job.name] = training.train_to(
                folder / job.name, backbone, trajectories, job, checkpoint, anchored, bar
            )
        training.write_history(folder / "history.csv", histories)
    for checkpoint in checkpoints:
        shutil.rmtree(checkpoint)


if __name__ == "__main__":
    main()
