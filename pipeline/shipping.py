"""Writes a trained rival of the comparison as a bundle, so that a method that beats the pair can be shipped."""

from dataclasses import replace
from pathlib import Path

from pipeline import adapters, artifacts, names
from pipeline.bundle import experts, write
from pipeline.bundle.manifest import Bundle
from pipeline.evaluation.arms import student_steps
from pipeline.params import Params
from pipeline.partition import Partition, two_phase_plan
from pipeline.training.rivals import RIVALS


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
    path = experts.regroup(partition, RIVALS[name].adapters(student_steps(two_phase_plan(partition))))
    student = replace(params.student, solver=RIVALS[name].solver or params.student.solver)
    trained = {phase.name: artifacts.TRAIN_CONTROLS / phase.name for phase in path.phases}
    for folder in trained.values():
        if not (folder / adapters.WEIGHTS).is_file():
            raise ValueError(f"{folder} holds no adapter: name {name} in train_controls.arms, and run `dvc repro`")
    with artifacts.atomic_dir(out) as folder:
        write.bundle(folder, trained, path, params.teacher, student)
    return Bundle.load(out)
