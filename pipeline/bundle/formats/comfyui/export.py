"""Writes a bundle's workflow, its LoRA files and a picture that carries the workflow."""

import json
import re
import shutil
from pathlib import Path

from pipeline import backbones, image_files, names
from pipeline.artifacts import file_digest, write_json
from pipeline.backbones.base import Backbone
from pipeline.bundle import generating
from pipeline.bundle.formats.base import Format
from pipeline.bundle.formats.comfyui import readme, ui
from pipeline.bundle.formats.comfyui.graph import Api, Part, Run, workflow
from pipeline.bundle.formats.comfyui.models import MODELS
from pipeline.bundle.manifest import SUFFIX, Bundle
from pipeline.flow.guidance import forwards

API, UI, SAMPLE, README, LORAS = "workflow_api.json", "workflow.json", "sample.png", "README.md", "loras"
SIZE_STEP = 16  # pixels of a token in each family
PROMPT, SEED = "a red star", 0  # as in the model card


def write(bundle: Bundle, folder: Path) -> list[Path]:
    """Writes both forms of the workflow, the LoRA files under names of their own, and a README.

    Raises:
        ValueError: ComfyUI's own nodes cannot run the bundle.
    """
    base = bundle.base()
    backbone = backbones.load(base, "cpu", parts=()) if base.path.exists() else None
    run = _run(bundle, backbone)
    api = workflow(run)
    write_json(folder / API, api)
    write_json(folder / UI, ui.form(api))
    (folder / LORAS).mkdir()
    for phase, part in zip(bundle.phases, run.parts, strict=True):
        shutil.copyfile(bundle.folder / phase.file, folder / LORAS / part.file)
    channels = MODELS[bundle.family].latent_channels
    if backbone is not None:
        channels = backbone.latent_shape(bundle.height, bundle.width)[1] // 4
    (folder / README).write_text(readme.text(bundle, run, channels), encoding="utf-8")
    return [Path(name) for name in (API, UI, README)] + [Path(LORAS, part.file) for part in run.parts]


def illustrate(bundle: Bundle, folder: Path) -> list[Path]:
    """Draws the workflow's picture with the pair, and writes both forms into the PNG's text as ComfyUI does.

    Raises:
        ValueError: The base cannot be loaded, or an adapter does not fit it.
    """
    api: Api = json.loads((folder / API).read_text(encoding="utf-8"))
    image = generating.generate(backbones.load(bundle.base(), "auto"), bundle, [PROMPT], [SEED])[0].numpy()
    chunks = generating.Origin.of(bundle).texts(PROMPT, SEED)
    image_files.save(
        image, folder / SAMPLE, {"prompt": json.dumps(api), "workflow": json.dumps(ui.form(api)), **chunks}
    )
    return [Path(SAMPLE)]


def _run(bundle: Bundle, backbone: Backbone | None) -> Run:
    """What the workflow of a bundle does. Raises ValueError as `write` does."""
    names.check("family", bundle.family, MODELS, where=" for the format comfyui")
    models, guidance = MODELS[bundle.family], bundle.guidance
    _check(bundle)
    name, steps = _word(Path(bundle.base_model).name), len(bundle.steps)
    parts = tuple(
        Part(name=phase.name, file=_file(name, steps, phase.name, bundle.folder / phase.file), steps=len(phase.steps))
        for phase in bundle.phases
    )
    return Run(
        models=models,
        transformer=models.transformer(bundle.base_model),
        styles=tuple((lora.path.name, lora.weight) for lora in bundle.loras),
        parts=parts,
        sigmas=_sigmas(bundle, backbone),
        prompt=PROMPT,
        negative_prompt=guidance.negative_prompt,
        seed=SEED,
        height=bundle.height,
        width=bundle.width,
        true_cfg_scale=guidance.student_true_cfg_scale,
        guidance_scale=guidance.guidance_scale,
        max_sequence_length=bundle.max_sequence_length,
        name=f"glance-{name}",
    )


def _check(bundle: Bundle) -> None:
    """Raises ValueError if ComfyUI's own nodes cannot run the bundle."""
    if bundle.path != "consistent":
        raise ValueError(
            f"the format comfyui needs the path consistent, got {bundle.path}: "
            "ComfyUI's samplers always tell the model the noise level of the latent"
        )
    if bundle.solver != "euler":
        raise ValueError(
            f"the format comfyui needs the solver euler, got {bundle.solver}: ComfyUI's sampler of this kind takes "
            "other steps or forgets its last step at the handoff"
        )
    scale = bundle.guidance.student_true_cfg_scale
    if MODELS[bundle.family].rescaled_guidance and forwards(scale) == 2:
        raise ValueError(
            f"the format comfyui needs student.true_cfg_scale 1 for {bundle.family}, got {scale}: ComfyUI's own nodes "
            "do not rescale the guided velocity to the norm of the conditional one, as diffusers does"
        )


def _sigmas(bundle: Bundle, backbone: Backbone | None) -> tuple[float, ...]:
    """The final noise levels at the bundle's size; without the base's scheduler, those of the manifest."""
    if backbone is not None:
        return tuple(bundle.plan(backbone).sigmas.tolist())
    starts = (sigma for phase in bundle.phases for sigma in phase.sigmas[:-1])
    return (*starts, bundle.phases[-1].sigmas[-1])


def _file(base: str, steps: int, phase: str, file: Path) -> str:
    """A name that is free in a folder with the LoRAs of many bundles."""
    digest = file_digest(file).removeprefix("sha256:")[:8]
    return f"glance-{base}-{steps}steps-{phase}-{digest}{SUFFIX}"


def _word(name: str) -> str:
    """A name as part of a file's name: lower case, with Latin letters, digits, dots, underscores and hyphens."""
    return re.sub(r"[^a-z0-9._]+", "-", name.lower()).strip("-.") or "base"


COMFYUI = Format(
    name="comfyui",
    description="A workflow for ComfyUI that runs all phases, its LoRA files, and a picture to drop on the page.",
    write=write,
    illustrate=illustrate,
    needs_base=False,
    size_step=SIZE_STEP,
)
