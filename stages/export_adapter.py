"""Writes the pair as a bundle that stock diffusers loads."""

from pipeline import artifacts
from pipeline.bundle import write
from pipeline.params import Params
from pipeline.partition import Partition
from stages import stage_command


@stage_command("export_adapter")
def main(params: Params) -> None:
    """Writes both adapters, the manifest and the model card."""
    partition = Partition.from_json(artifacts.read_json(artifacts.PARTITION))
    adapters = {"slow": artifacts.TRAIN_SLOW, "fast": artifacts.TRAIN_FAST}
    with artifacts.atomic_dir(artifacts.BUNDLE) as folder:
        write.bundle(folder, adapters, partition, params.teacher, params.student)


if __name__ == "__main__":
    main()
