"""The files of a bundle: two adapters as stock diffusers loads them, and a manifest for the sampler.

slow.safetensors, fast.safetensors   transformer.<module>.lora_A/B.weight, scale folded into B
adapter_config.json                  peft's, with lora_alpha = r
glance.json                          the manifest: the base, the levels, the phases, the guidance
README.md                            the model card
"""

from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline import adapters, backbones
from pipeline.artifacts import folder_digest, read_json
from pipeline.backbones.base import Backbone
from pipeline.backbones.teacher import Teacher
from pipeline.flow import solvers, stepping
from pipeline.flow.sampling import StepPlan
from pipeline.partition import PHASES
from pipeline.styles import Lora

MANIFEST = "glance.json"
MANIFEST_FORMAT = 1
CARD = "README.md"
ADAPTER_FILES = {phase: f"{phase}.safetensors" for phase in PHASES}
"""The phases of a bundle in order, and the adapter file of each phase."""


@dataclass(frozen=True, kw_only=True)
class BundlePhase:
    """One phase's part of the path."""

    steps: tuple[int, ...]
    """Teacher steps at which the student's steps start."""
    u: tuple[float, ...]
    """Base levels at those steps."""
    sigmas: tuple[float, ...]
    """Noise levels at those steps, then at the end of the phase, for the training resolution."""


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How teacher and student are guided."""

    teacher_true_cfg_scale: float
    student_true_cfg_scale: float
    guidance_scale: float
    negative_prompt: str = ""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """The content of glance.json, and the folder that it lies in."""

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
    """Dtype of the base's weights and latents, one of `teacher.DTYPES`."""
    guidance: Guidance
    base_license: str
    rank: int
    path: str = "consistent"
    """How the latents move, one of `stepping.PATHS`."""
    solver: str = "euler"
    """One of `solvers.SOLVERS`."""
    loras: tuple[Lora, ...] = ()
    """The LoRAs fused into the base, with the digests of their files."""

    @classmethod
    def load(cls, folder: str | Path) -> "Bundle":
        """Reads a bundle and checks that its parts fit.

        Raises:
            ValueError: A file or a key is missing, the format is another one, the phases do not join, or an adapter
                is not a LoRA of the stated rank.
        """
        folder = Path(folder)
        for file in (MANIFEST, adapters.CONFIG, CARD, *ADAPTER_FILES.values()):
            if not (folder / file).is_file():
                raise ValueError(f"{folder} is no bundle: {file} is missing")
        content = read_json(folder / MANIFEST)
        if content.get("format") != MANIFEST_FORMAT:
            raise ValueError(f"{folder / MANIFEST}: format must be {MANIFEST_FORMAT}, got {content.get('format')}")
        try:
            content = {
                "loras": [],
                "path": cls.path,
                "solver": cls.solver,
                **content,
            }  # bundles of earlier versions lack these keys
            values: dict[str, Any] = {f.name: content[f.name] for f in fields(cls) if f.name != "folder"}
            values |= {
                "u": tuple(values["u"]),
                "steps": tuple(values["steps"]),
                "phases": {
                    name: BundlePhase(**{key: tuple(entry) for key, entry in values["phases"][name].items()})
                    for name in ADAPTER_FILES
                },
                "guidance": Guidance(**values["guidance"]),
                "loras": tuple(Lora(**entry) for entry in values["loras"]),
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / MANIFEST} is not a complete manifest ({error})") from error
        stepping.check(f"{folder / MANIFEST}: path", values["path"])
        solvers.check(f"{folder / MANIFEST}: solver", values["solver"])
        bundle = cls(folder=folder, **values)
        bundle._check_path()
        bundle.states()
        return bundle

    @property
    def files(self) -> dict[str, Path]:
        """The file of each phase's adapter."""
        return {phase: self.folder / ADAPTER_FILES[phase] for phase in self.phases}

    def states(self) -> dict[str, adapters.State]:
        """The tensors of each phase's adapter, with folded scale.

        Raises:
            ValueError: A file is unreadable, or holds anything but finite pairs of the bundle's rank.
        """
        return {phase: self._state(file) for phase, file in self.files.items()}

    def base(self, path: str | Path | None = None, quantization: str = "none") -> Teacher:
        """The model that the adapters belong to, in the folder of the manifest or in `path`."""
        return Teacher(
            path=Path(path or self.base_model), dtype=self.dtype, quantization=quantization, loras=self.loras
        )

    def check_base(self, path: str | Path | None = None) -> None:
        """Refuses a folder that does not hold the model that the adapters belong to.

        Args:
            path: The folder; None = the folder that the manifest names.

        Raises:
            ValueError: The folder is missing or holds another model, or a LoRA that is fused into the model is missing.
            FileNotFoundError: The folder holds no transformer.
        """
        path = Path(path or self.base_model)
        if not path.exists():
            raise ValueError(f"the base model {path} is not here: go to the project's root, or name it with --teacher")
        digest = backbones.digest(path, self.loras)
        if digest != self.base_digest:
            raise ValueError(f"{self.folder} was made for another model than {path}: {self.base_digest}, not {digest}")

    def plan(self, backbone: Backbone) -> StepPlan:
        """For each of the K steps: the model's noise level, how far the latents move, the active adapter."""
        steps = stepping.Steps(self.u, len(self.phases["slow"].steps), self.teacher_steps, self.height, self.width)
        sigmas, moves = stepping.PATHS[self.path](steps, backbone.schedule)
        adapters = tuple(name for name, phase in self.phases.items() for _ in phase.steps)
        moves = None if self.path == "consistent" else moves
        return StepPlan(sigmas, adapters, moves, self.solver)

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
        slow, fast = self.phases.values()
        sigmas = (*slow.sigmas[:-1], *fast.sigmas)
        joined = slow.sigmas[-1:] == fast.sigmas[:1] and self.u == slow.u + fast.u
        whole = joined and len(sigmas) == len(self.u) + 1 and sigmas[-1] == 0
        if not whole or any(later >= earlier for earlier, later in pairwise(sigmas)):
            raise ValueError(
                f"{self.folder / MANIFEST}: slow must end where fast starts, and sigma go down to 0, "
                f"got {list(slow.sigmas)} and {list(fast.sigmas)} at {len(self.u)} levels"
            )


def bundle_digest(folder: str | Path) -> str:
    """ "sha256:<hex>" over a bundle's file names and bytes; the registry identifies a bundle by this digest."""
    return folder_digest(folder)
