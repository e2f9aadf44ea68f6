"""Writes a bundle: each phase's adapter with the keys of diffusers, the manifest and the model card."""

from collections.abc import Mapping
from pathlib import Path

from peft import LoraConfig

from pipeline import adapters, backbones
from pipeline.artifacts import save_safetensors
from pipeline.bundle import card, header
from pipeline.bundle.manifest import CARD, Bundle
from pipeline.bundle.parts import BundlePhase, Guidance, Retention
from pipeline.flow import stepping
from pipeline.params import StudentParams, TeacherParams
from pipeline.partition import Partition
from pipeline.styles import pinned


def bundle(
    folder: str | Path,
    trained: Mapping[str, Path],
    partition: Partition,
    teacher: TeacherParams,
    student: StudentParams,
    *,
    path: str = "consistent",
    imported: bool = False,
    license: str | None = None,
    retention: Retention | None = None,
) -> Bundle:
    """Writes a bundle and reads it back.

    Args:
        folder: An empty folder for the bundle; `artifacts.atomic_dir` moves it into place whole.
        trained: The folder of each phase's adapter, in peft's layout.
        partition: The student's path, whose phases are named like the keys of `trained`.
        teacher: The base and its settings.
        student: How the student is run.
        path: How the latents move, one of `stepping.PATHS`.
        imported: Whether the adapters were trained elsewhere, as the card then says.
        license: The licence of the adapters; None = that of the base.
        retention: What was measured of these adapters; None = nothing yet.

    Raises:
        ValueError: An adapter or a LoRA of the teacher is missing, the adapters have different ranks, the name of a
            phase is none for a file, or the path is unknown or for another number of phases.
    """
    stepping.check("path", path)
    folder = Path(folder)
    phases = [BundlePhase.of(phase) for phase in partition.phases]
    read = [adapters.read(trained[phase.name]) for phase in phases]
    ranks = [config.r for _, config in read]
    if len(set(ranks)) > 1:
        got = " and ".join(f"{rank} of {phase.name}" for rank, phase in zip(ranks, phases, strict=True))
        raise ValueError(f"all phases must have the same rank, got {got}")
    config = read[0][1]
    backbone = backbones.load(teacher.path, "cpu", parts=())
    base_license = card.license_of(Path(teacher.path) / "README.md")
    made = Bundle(
        folder=folder,
        base_model=teacher.path,
        base_digest=backbones.digest(teacher.path, teacher.loras),
        loras=pinned(teacher.loras),
        family=backbone.family,
        base_license=base_license,
        license=license or base_license,
        teacher_steps=partition.teacher_steps,
        phases=tuple(phases),
        height=teacher.height,
        width=teacher.width,
        max_sequence_length=teacher.max_sequence_length,
        dtype=teacher.dtype,
        guidance=Guidance(
            teacher_true_cfg_scale=teacher.true_cfg_scale,
            student_true_cfg_scale=student.true_cfg_scale,
            guidance_scale=teacher.guidance_scale,
            negative_prompt=teacher.negative_prompt,
        ),
        rank=config.r,
        path=path,
        solver=student.solver,
        retention=retention,
    )
    for phase, (state, _) in zip(phases, read, strict=True):
        tensors = {adapters.DIFFUSERS_PREFIX + key: tensor for key, tensor in state.items()}
        save_safetensors(folder / phase.file, tensors, header.texts(made, phase.name, backbone))
    folded = LoraConfig(
        r=config.r, lora_alpha=config.r, target_modules=config.target_modules, exclude_modules=config.exclude_modules
    )
    folded.base_model_name_or_path = teacher.path
    adapters.write_config(folder, folded)

    made.write_manifest(folder)
    call = backbone.stock_guidance(student.true_cfg_scale, teacher.guidance_scale, teacher.negative_prompt)
    (folder / CARD).write_text(card.text(made.to_json(), call, imported=imported), encoding="utf-8")
    loaded = Bundle.load(folder)
    loaded.plan(backbone)
    return loaded
