"""Trains the adapter of the slow phase on the teacher's path."""

import shutil
from functools import partial

from pipeline import anchors, artifacts, training
from pipeline.params import Params
from pipeline.partition import Partition
from pipeline.trajectories import Trajectories
from stages import progress, stage_command


@stage_command("train_slow")
def main(params: Params) -> None:
    """Trains the adapter of the slow phase; a killed run goes on from its last checkpoint."""
    partition = Partition.from_json(artifacts.read_json(artifacts.PARTITION))
    trajectories = Trajectories(artifacts.TRAJECTORIES)
    settings = training.Settings.of(params.training, params.train_slow)
    job = training.Job(
        "slow",
        partition.slow.pairs,
        settings,
        params.teacher.guidance_scale,
        params.student.true_cfg_scale,
        anchors.student_steps(partition, "slow"),
    )
    key = training.key(job, artifacts.TRAJECTORIES, artifacts.ANCHORS)
    checkpoint = artifacts.checkpoint_dir("train_slow", key)
    backbone = training.load_teacher(params)
    bar = partial(progress, total=settings.train_steps, what="training slow", unit="step")

    with artifacts.atomic_dir(artifacts.TRAIN_SLOW) as folder:
        history = training.train_to(folder, backbone, trajectories, job, checkpoint, anchors.load(), bar)
        training.write_history(folder / "history.csv", {None: history})
    shutil.rmtree(checkpoint)


if __name__ == "__main__":
    main()
