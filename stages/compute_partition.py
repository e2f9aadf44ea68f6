"""Splits the teacher's path into the slow and the fast phase, and picks the student's steps."""

from pipeline import artifacts, partition
from pipeline.params import Params
from pipeline.recording.trajectories import Trajectories
from stages import stage_command


@stage_command("compute_partition")
def main(params: Params) -> None:
    """Reads the noise schedule of the recording; writes partition.json and the plot of SNR over the steps."""
    result = partition.compute(params, Trajectories(artifacts.TRAJECTORIES, verify=False).schedule)
    with artifacts.atomic_dir(artifacts.PARTITION.parent) as folder:
        partition.plot(result, folder / "snr.png")
        artifacts.write_json(folder / artifacts.PARTITION.name, result.to_json())


if __name__ == "__main__":
    main()
