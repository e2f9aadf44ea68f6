"""Writes a trained rival of the comparison as a bundle, so that a method that beats the pair can be shipped."""

from pathlib import Path

from pipeline import adapters, artifacts, names
from pipeline.bundle import experts, write
from pipeline.bundle.manifest import Bundle
from pipeline.params import Params
from pipeline.partition import Partition
from pipeline.training.rivals import RIVALS, Rival


def rival(name: str, params: Params, out: Path) -> Bundle:
    """Writes the adapters that the stage `train_controls` trained for a rival, in the student's steps.

    Args:
        name: A key of `RIVALS`.
        params: The parameters that the adapters were trained with.
        out: The folder to make, whole or not at all.

    Raises:
        ValueError: The rival is unknown or was not trained, `out` exists, or as `write.bundle` does.
        FileNotFoundError: There is no partition.
    """
    names.check("NAME", name, RIVALS)
    if out.exists():
        raise ValueError(f"OUT must not be there yet, got {out}")
    partition = Partition.from_json(artifacts.read_json(artifacts.PARTITION))
    path = experts.regroup(partition, adapter_per_step(RIVALS[name], partition))
    trained = {phase.name: artifacts.TRAIN_CONTROLS / phase.name for phase in path.phases}
    for folder in trained.values():
        if not (folder / adapters.WEIGHTS).is_file():
            raise ValueError(f"{folder} holds no adapter: name {name} in train_controls.arms, and run `dvc repro`")
    with artifacts.atomic_dir(out) as folder:
        write.bundle(folder, trained, path, params.teacher, params.student)
    return Bundle.load(out)


def adapter_per_step(rival: Rival, partition: Partition) -> tuple[str, ...]:
    """The adapter of each of the student's K steps, by name."""
    slow, fast = rival.adapters
    return (slow,) * len(partition.slow.steps) + (fast,) * len(partition.fast.steps)
