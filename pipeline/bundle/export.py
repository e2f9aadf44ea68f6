"""The bundle: both adapters as stock diffusers loads them, what a sampler must know, and how to use it.

slow.safetensors, fast.safetensors   transformer.<module>.lora_A/B.weight, scale folded into B
adapter_config.json                  peft's, with lora_alpha = r
glance.json                          the base, the levels, the phases, the guidance
README.md                            the model card
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path

from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline import adapters, backbones
from pipeline.adapters import switching
from pipeline.artifacts import folder_digest, read_json, save_safetensors, write_json
from pipeline.backbones.base import Backbone, guided
from pipeline.backbones.teacher import Teacher
from pipeline.bundle import card
from pipeline.flow import stepping
from pipeline.flow.guidance import forwards
from pipeline.flow.sampling import StepPlan, sample_plan
from pipeline.params import StudentParams, TeacherParams
from pipeline.partition import PHASES, Partition
from pipeline.styles import Lora, pinned

FORMAT = 1
MANIFEST = "glance.json"
CARD = "README.md"


@dataclass(frozen=True)
class BundlePhase:
    """One phase's part of the path."""

    steps: tuple[int, ...]
    """Teacher steps at which the student's start."""
    u: tuple[float, ...]
    """Base levels there."""
    sigmas: tuple[float, ...]
    """Noise levels there, then at the end, at the resolution of the training."""


@dataclass(frozen=True)
class Guidance:
    """How teacher and student are guided."""

    teacher_true_cfg_scale: float
    student_true_cfg_scale: float
    guidance_scale: float
    negative_prompt: str = ""


@dataclass(frozen=True)
class Bundle:
    """What glance.json says, and where it lies."""

    folder: Path
    base_model: str
    base_digest: str
    family: str
    u: tuple[float, ...]
    """Base levels of the K steps: what stock pipelines take as `sigmas`."""
    steps: tuple[int, ...]
    teacher_steps: int
    phases: dict[str, BundlePhase]
    handoff: dict[str, float]
    height: int
    width: int
    max_sequence_length: int
    dtype: str
    """Of the base's weights and latents, one of `teacher.DTYPES`."""
    guidance: Guidance
    base_license: str
    rank: int
    path: str = "consistent"
    """How the latents move, one of `stepping.PATHS`."""
    loras: tuple[Lora, ...] = ()
    """What is fused into the base, with the digests of the files."""

    @classmethod
    def load(cls, folder: str | Path) -> "Bundle":
        """Reads a bundle and checks that it holds together.

        Raises:
            ValueError: A file or a key is missing, the format is another one, the phases do not join, or an adapter
                is not a LoRA of the stated rank.
        """
        folder = Path(folder)
        for file in (MANIFEST, adapters.CONFIG, CARD, *(f"{phase}.safetensors" for phase in PHASES)):
            if not (folder / file).is_file():
                raise ValueError(f"{folder} is no bundle: {file} is missing")
        content = read_json(folder / MANIFEST)
        if content.get("format") != FORMAT:
            raise ValueError(f"{folder / MANIFEST}: format must be {FORMAT}, got {content.get('format')}")
        try:
            content = {"loras": [], "path": cls.path, **content}  # bundles of earlier versions have none
            values = {f.name: content[f.name] for f in fields(cls) if f.name != "folder"}
            values |= {
                "u": tuple(values["u"]),
                "steps": tuple(values["steps"]),
                "phases": {
                    name: BundlePhase(**{key: tuple(entry) for key, entry in values["phases"][name].items()})
                    for name in PHASES
                },
                "guidance": Guidance(**values["guidance"]),
                "loras": tuple(Lora(**entry) for entry in values["loras"]),
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / MANIFEST} is not a complete manifest ({error})") from error
        stepping.check(f"{folder / MANIFEST}: path", values["path"])
        bundle = cls(folder=folder, **values)
        bundle._check_path()
        bundle.states()
        return bundle

    def states(self) -> dict[str, adapters.State]:
        """Both adapters' tensors, with folded scale.

        Raises:
            ValueError: A file is unreadable, or holds anything but finite pairs of the bundle's rank.
        """
        return {phase: self._state(self.folder / f"{phase}.safetensors") for phase in PHASES}

    def base(self, path: str | Path | None = None, quantization: str = "none") -> Teacher:
        """The model that the adapters belong to, in the folder that the manifest names or in another one."""
        return Teacher(
            path=Path(path or self.base_model), dtype=self.dtype, quantization=quantization, loras=self.loras
        )

    def plan(self, backbone: Backbone) -> StepPlan:
        """What the model is told, how far the latents move and which adapter acts in each of the K steps."""
        steps = stepping.Steps(self.u, len(self.phases["slow"].steps), self.teacher_steps, self.height, self.width)
        sigmas, moves = stepping.PATHS[self.path](steps, backbone.schedule)
        return StepPlan(sigmas, tuple(name for name in PHASES for _ in self.phases[name].steps), moves)

    def _state(self, path: Path) -> adapters.State:
        try:
            state = adapters.strip_prefix(load_file(path), adapters.DIFFUSERS_PREFIX, path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file ({error})") from error
        adapters.check_whole(state, str(path))
        ranks = {tensor.shape[0 if ".lora_A." in key else 1] for key, tensor in state.items()}
        if ranks != {self.rank}:
            raise ValueError(f"{path} must have rank {self.rank}, as {MANIFEST} says, got {sorted(ranks)}")
        return state

    def _check_path(self) -> None:
        slow, fast = (self.phases[name] for name in PHASES)
        sigmas = (*slow.sigmas[:-1], *fast.sigmas)
        joined = slow.sigmas[-1:] == fast.sigmas[:1] and self.u == slow.u + fast.u
        whole = joined and len(sigmas) == len(self.u) + 1 and sigmas[-1] == 0
        if not whole or any(later >= earlier for earlier, later in pairwise(sigmas)):
            raise ValueError(
                f"{self.folder / MANIFEST}: slow must end where fast starts, and sigma go down to 0, "
                f"got {list(slow.sigmas)} and {list(fast.sigmas)} at {len(self.u)} levels"
            )


def bundle_digest(folder: str | Path) -> str:
    """ "sha256:<hex>" of a bundle's file names and bytes: what a version of it is known by."""
    return folder_digest(folder)


def write(
    folder: str | Path,
    trained: Mapping[str, Path],
    partition: Partition,
    teacher: TeacherParams,
    student: StudentParams,
    path: str = "consistent",
    imported: bool = False,
) -> Bundle:
    """Writes a bundle and reads it back.

    Args:
        folder: Where it goes.
        trained: The folder of each phase's adapter, in peft's layout.
        partition: The student's path.
        teacher: The base, and how it was run.
        student: How the student is run.
        path: How the latents move, one of `stepping.PATHS`.
        imported: The adapters were trained elsewhere, which the card then says.

    Raises:
        ValueError: An adapter or a LoRA of the teacher is missing, the adapters have different ranks, or there is no
            such path.
    """
    stepping.check("path", path)
    folder = Path(folder)
    read = {phase: adapters.read(trained[phase]) for phase in PHASES}
    ranks = {phase: config.r for phase, (_, config) in read.items()}
    if len(set(ranks.values())) > 1:
        raise ValueError(f"slow and fast must have the same rank, got {ranks['slow']} and {ranks['fast']}")
    for phase, (state, _) in read.items():
        tensors = {adapters.DIFFUSERS_PREFIX + key: tensor for key, tensor in state.items()}
        save_safetensors(folder / f"{phase}.safetensors", tensors, {"format": "pt"})
    config = read["slow"][1]
    folded = LoraConfig(
        r=config.r, lora_alpha=config.r, target_modules=config.target_modules, exclude_modules=config.exclude_modules
    )
    folded.base_model_name_or_path = teacher.path
    adapters.write_config(folder, folded)

    backbone = backbones.load(teacher.path, "cpu", parts=())
    content = {
        "format": FORMAT,
        "base_model": teacher.path,
        "base_digest": backbones.digest(teacher.path, teacher.loras),
        "loras": [asdict(lora) for lora in pinned(teacher.loras)],
        "family": backbone.family,
        "u": partition.u,
        "steps": partition.steps[:-1],
        "teacher_steps": partition.teacher_steps,
        "phases": {
            name: asdict(BundlePhase(phase.steps, phase.u, phase.sigmas)) for name, phase in partition.phases.items()
        },
        "handoff": {"step": partition.fast.steps[0], "u": partition.fast.u[0], "sigma": partition.handoff},
        "height": teacher.height,
        "width": teacher.width,
        "max_sequence_length": teacher.max_sequence_length,
        "dtype": teacher.dtype,
        "guidance": asdict(
            Guidance(teacher.true_cfg_scale, student.true_cfg_scale, teacher.guidance_scale, teacher.negative_prompt)
        ),
        "base_license": card.license_of(Path(teacher.path) / "README.md"),
        "rank": config.r,
        "path": path,
    }
    write_json(folder / MANIFEST, content)
    call = backbone.stock_guidance(student.true_cfg_scale, teacher.guidance_scale, teacher.negative_prompt)
    (folder / CARD).write_text(card.text(content, call, imported), encoding="utf-8")
    return Bundle.load(folder)


def generate(backbone: Backbone, bundle: Bundle, prompts: list[str], seeds: list[int], fused: bool = True) -> Tensor:
    """One image per prompt: K Euler steps, slow's adapter before the handoff and fast's after it.

    Args:
        backbone: The bundle's base, whole, with the bundle's LoRAs; it is left as it was.
        bundle: The pair.
        prompts: B texts.
        seeds: Of each image's noise, length B.
        fused: Put each phase's full weights in place (no low-rank path in a forward, a copy of the adapted weights
            per phase in memory); else run the low-rank products beside the layers.

    Returns:
        uint8 (B, height, width, 3), on the CPU.

    Raises:
        ValueError: There are not as many seeds as prompts, or an adapter names a module that the base lacks.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"every prompt needs a seed, got {len(prompts)} prompts and {len(seeds)} seeds")
    guidance, grid = bundle.guidance, backbone.grid(bundle.height, bundle.width)

    scale = guidance.student_true_cfg_scale
    conditioning, negative = backbone.encode(prompts, bundle.max_sequence_length), None
    if forwards(scale) == 2:
        negative = backbone.encode([guidance.negative_prompt], bundle.max_sequence_length)
    velocity = guided(
        backbone, conditioning, negative, guidance_scale=guidance.guidance_scale, true_cfg_scale=scale, grid=grid
    )

    noise = backbone.noise(seeds, bundle.height, bundle.width)
    with switching.acting(backbone.transformer, bundle.states(), fused, backbone.home) as select:
        x = sample_plan(velocity, noise, bundle.plan(backbone), select)
    return backbone.decode(x, bundle.height, bundle.width)
