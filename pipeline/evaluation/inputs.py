"""What the arms are made of: the teacher, the pair, the controls, the prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from pipeline import adapters, artifacts, backbones, styles
from pipeline.backbones.base import Backbone
from pipeline.bundle.manifest import MANIFEST, Bundle, bundle_digest
from pipeline.evaluation import arms, published, recipes
from pipeline.evaluation.arms import Arm
from pipeline.evaluation.sampler import Sampler
from pipeline.evaluation.weights import ArmWeights
from pipeline.flow.schedule import Schedule
from pipeline.params import Params
from pipeline.partition import PHASES
from pipeline.prompts import load_prompts
from pipeline.training.rivals import chosen

PACKAGES = ("torch", "diffusers", "transformers", "peft", "numpy")
IMAGE_CODE = (
    "pipeline/adapters/*.py",
    "pipeline/backbones/*.py",
    "pipeline/evaluation/sampler.py",
    "pipeline/evaluation/weights.py",
    "pipeline/flow/*.py",
    "pipeline/styles.py",
)
"""The code that the bytes of an image depend on, together with the file of the teacher's family. This code is all that
`sampler` imports, except modules that only pass numbers to it."""


@dataclass(frozen=True)
class Source:
    """The pair and the controls that an evaluation measures.

    Attributes:
        bundle: The folder of the pair.
        controls: The control arms that have adapters.
        trained_here: Whether this project's stages trained the pair.
    """

    bundle: Path
    controls: tuple[str, ...]
    trained_here: bool

    def trained(self, job: str) -> bool:
        """Whether the job of this name, a phase or a control's, trained an adapter that the evaluation measures."""
        return self.trained_here if job in PHASES else bool(self.controls)


def of_stages(params: Params) -> Source:
    """The pair and the controls that the earlier stages wrote.

    Raises:
        ValueError: A control is unknown.
    """
    return Source(artifacts.BUNDLE, tuple(chosen(params.train_controls.arms)), True)


def of_bundle(params: Params, folder: Path) -> Source:
    """A pair in any folder, with this project's trained controls if they run in the same way as the pair.

    Raises:
        ValueError: The folder holds no bundle, or a control is unknown.
    """
    bundle, known = Bundle.load(folder), chosen(params.train_controls.arms)
    own = Bundle.load(artifacts.BUNDLE) if (artifacts.BUNDLE / MANIFEST).is_file() else None
    if own is None or not _run_alike(own, bundle):
        return Source(folder, (), False)
    steps = arms.student_steps(own.plan(backbones.load(params.teacher.path, "cpu", parts=())))
    there = {name: all(map(_is_adapter, map(_control, rival.adapters(steps)))) for name, rival in known.items()}
    controls = tuple(name for name in known if there[name])
    return Source(folder, controls, bundle_digest(own.folder) == bundle_digest(folder))


@dataclass(frozen=True)
class Inputs:
    """What the arms are made of, with digests of its origin; the model itself is loaded at its first use.

    Attributes:
        params: All parameters.
        bundle: The pair, or another bundle.
        prompts: Held-out prompts.
        arms: The compared arms.
        schedule: Base levels to sigmas, at the evaluated resolution.
        states: Every adapter with folded scale, by name.
        adapter_digests: Digest of each adapter's file, with the scale of a published one.
        teacher_digest: Digest of the transformer and of the LoRAs fused into it.
        bundle_digest: Digest of the bundle.
        origin: What an image of the bare backbone depends on, besides noise levels, prompt and seed.
        load: Loads the whole teacher; raises ValueError if an adapter does not fit the teacher.
    """

    params: Params
    bundle: Bundle
    prompts: list[str]
    arms: list[Arm]
    schedule: Schedule
    states: Mapping[str, adapters.State]
    adapter_digests: Mapping[str, str]
    teacher_digest: str
    bundle_digest: str
    origin: Mapping
    load: Callable[[], Backbone]

    @cached_property
    def sampler(self) -> Sampler:
        """Makes the images of the arms; the first access loads the model."""
        teacher, backbone = self.params.teacher, self.load()
        return Sampler(
            backbone,
            ArmWeights(backbone.transformer, self.states, backbone.home),
            teacher.height,
            teacher.width,
            teacher.max_sequence_length,
            teacher.guidance_scale,
            teacher.negative_prompt,
        )

    def release(self) -> None:
        """Lets go of the model; `sampler` loads it again."""
        vars(self).pop("sampler", None)


def read(params: Params, source: Source) -> Inputs:
    """Reads a pair, its controls, the published rivals, the prompts, and the teacher's configuration without weights.

    Raises:
        ValueError: If an artifact is missing or broken, the bundle was made for another teacher or for other settings
            of the teacher, the prompts are missing or too few, or a rival's file is missing or no LoRA of the teacher.
    """
    bundle, teacher, settings = Bundle.load(source.bundle), params.teacher, params.evaluation
    teacher_digest = backbones.digest(teacher.path, teacher.loras)
    if bundle.base_digest != teacher_digest:
        raise ValueError(
            f"{bundle.folder} must belong to the teacher in {teacher.path}, whose digest is {teacher_digest},"
            f" got a bundle for {bundle.base_digest}"
        )
    _check_alike(params, bundle)
    prompts = load_prompts(settings.prompts_file, settings.prompts, "evaluation", settings.seed, "evaluation")
    states, files = dict(bundle.states()), dict(bundle.files)
    frame = backbones.load(teacher.path, "cpu", parts=())
    student = bundle.plan(frame)
    for rival in chosen(source.controls).values():
        for name in rival.adapters(arms.student_steps(student)):
            if name not in states:
                states[name] = adapters.read(_control(name))[0]
                files[name] = _control(name) / adapters.WEIGHTS
    digests = {name: artifacts.file_digest(file) for name, file in files.items()}
    for name, (lora, scale) in published.files(params.published).items():
        states[name], files[name] = published.read(lora, scale, frame), lora.path
        digests[name] = f"{lora.digest()} x {scale:g}"
    conditions = recipes.Conditions(
        schedule=frame.schedule(teacher.height, teacher.width),
        teacher_steps=teacher.steps,
        student=student,
        teacher_scale=teacher.true_cfg_scale,
        student_scale=bundle.guidance.student_true_cfg_scale,
        rivals=source.controls,
        free=settings.free,
        swaps=settings.swaps,
    )

    def load() -> Backbone:
        backbone = backbones.load(teacher.base, params.runtime.device, offload=params.runtime.offload)
        shapes = adapters.linear_shapes(backbone.transformer)
        for name, state in states.items():  # before the teacher's images are made
            adapters.check(state, shapes, str(files[name]), f"the transformer of {teacher.path}")
        return backbone

    return Inputs(
        params,
        bundle,
        prompts,
        [
            *arms.build(conditions),
            *(published.arm(name, rival, conditions.schedule) for name, rival in params.published.items()),
        ],
        conditions.schedule,
        states,
        digests,
        teacher_digest,
        bundle_digest(bundle.folder),
        _origin(params),
        load,
    )


def _origin(params: Params) -> dict:
    teacher = params.teacher
    return {
        "teacher": artifacts.folder_digest(teacher.path),
        "loras": styles.content(teacher.loras),
        "code": artifacts.code_digest((*IMAGE_CODE, f"pipeline/families/{teacher.family}.py")),
        "packages": {name: version(name) for name in PACKAGES},
        "device": backbones.resolve_device(params.runtime.device).type,
        "dtype": teacher.dtype,
        "quantization": teacher.quantization,
        "height": teacher.height,
        "width": teacher.width,
        "max_sequence_length": teacher.max_sequence_length,
        "guidance_scale": teacher.guidance_scale,
        "negative_prompt": teacher.negative_prompt,
    }


def _control(name: str) -> Path:
    return artifacts.TRAIN_CONTROLS / name


def _is_adapter(folder: Path) -> bool:
    return all((folder / file).is_file() for file in (adapters.WEIGHTS, adapters.CONFIG))


def _run_alike(own: Bundle, other: Bundle) -> bool:
    """Whether two pairs run in the same way, so that the controls of one can serve the other."""
    labels = ("folder", "base_model", "base_license", "rank")
    return replace(own, **{name: getattr(other, name) for name in labels}) == other


def _check_alike(params: Params, bundle: Bundle) -> None:
    """Raises ValueError unless the pair was made for the settings of the teacher that all arms share."""
    teacher = params.teacher
    for key, made_for, got in (
        ("height", bundle.height, teacher.height),
        ("width", bundle.width, teacher.width),
        ("max_sequence_length", bundle.max_sequence_length, teacher.max_sequence_length),
        ("dtype", bundle.dtype, teacher.dtype),
        ("steps", bundle.teacher_steps, teacher.steps),
        ("guidance_scale", bundle.guidance.guidance_scale, teacher.guidance_scale),
        ("negative_prompt", bundle.guidance.negative_prompt, teacher.negative_prompt),
    ):
        if got != made_for:
            raise ValueError(f"teacher.{key} must be {made_for!r} as in {bundle.folder / MANIFEST}, got {got!r}")
