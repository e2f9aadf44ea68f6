"""The files of a bundle: adapters as stock diffusers loads them, one per phase, and a manifest for the sampler.

<phase>.safetensors   transformer.<module>.lora_A/B.weight, scale folded into B; slow and fast in a pair
adapter_config.json   peft's, with lora_alpha = r
glance.json           the manifest: the base, the levels, the phases, the guidance
README.md             the model card
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline import adapters, backbones
from pipeline.artifacts import files, folder_digest, read_json
from pipeline.backbones.base import Backbone
from pipeline.backbones.teacher import Teacher
from pipeline.flow import solvers, stepping
from pipeline.flow.sampling import StepPlan, adapter_at
from pipeline.partition import PHASES, Phase
from pipeline.styles import Lora

MANIFEST = "glance.json"
MANIFEST_FORMAT = 2
CARD = "README.md"
SUFFIX = ".safetensors"
NAME = re.compile("[a-z0-9_]+")


@dataclass(frozen=True, kw_only=True)
class BundlePhase:
    """One phase's part of the path: one or more consecutive steps with one adapter."""

    name: str
    """The adapter's name, of a-z, 0-9 and _."""
    file: str
    """The adapter's file in the folder: <name>.safetensors."""
    steps: tuple[int, ...]
    """Teacher steps at which the student's steps start; the nearest ones, if the levels are not the teacher's."""
    u: tuple[float, ...]
    """Base levels at those steps."""
    sigmas: tuple[float, ...]
    """Noise levels at those levels, then at the end of the phase, for the training resolution."""

    def __post_init__(self) -> None:
        """Raises ValueError if the name has other letters, or the file another name."""
        if not NAME.fullmatch(self.name):
            raise ValueError(f"the name of a phase must be of a-z, 0-9 and _, got {self.name!r}")
        if self.file != self.name + SUFFIX:
            raise ValueError(f"the file of phase {self.name} must be {self.name + SUFFIX}, got {self.file!r}")

    @classmethod
    def of(cls, phase: Phase) -> "BundlePhase":
        """The manifest's entry for a phase of a partition; raises ValueError if the name has other letters."""
        return cls(name=phase.name, file=phase.name + SUFFIX, steps=phase.steps, u=phase.u, sigmas=phase.sigmas)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "BundlePhase":
        """Reads an entry of the manifest's list; raises KeyError, TypeError or ValueError if it is no phase."""
        lists = {key: tuple(entry[key]) for key in ("steps", "u", "sigmas")}
        return cls(name=entry["name"], file=entry["file"], **lists)


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
    phases: tuple[BundlePhase, ...]
    """In order."""
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
            ValueError: A file or a key is missing, the format is another one, two phases have one name, the phases do
                not join, an adapter belongs to no phase, or an adapter is not a LoRA of the stated rank.
        """
        folder = Path(folder)
        _require(folder, MANIFEST, adapters.CONFIG, CARD)
        content = read_json(folder / MANIFEST)
        if content.get("format") not in tuple(FORMATS):
            known = " or ".join(map(str, FORMATS))
            raise ValueError(f"{folder / MANIFEST}: format must be {known}, got {content.get('format')}")
        try:
            absent = {"loras": [], "path": cls.path, "solver": cls.solver}  # in bundles of earlier versions
            content = absent | content
            values: dict[str, Any] = {f.name: content[f.name] for f in fields(cls) if f.name != "folder"}
            values |= {
                "u": tuple(values["u"]),
                "steps": tuple(values["steps"]),
                "phases": tuple(map(BundlePhase.from_json, FORMATS[content["format"]](values["phases"]))),
                "guidance": Guidance(**values["guidance"]),
                "loras": tuple(Lora(**entry) for entry in values["loras"]),
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / MANIFEST} is not a complete manifest ({error})") from error
        stepping.check(f"{folder / MANIFEST}: path", values["path"])
        solvers.check(f"{folder / MANIFEST}: solver", values["solver"])
        bundle = cls(folder=folder, **values)
        bundle._check_phases()
        bundle.states()
        return bundle

    @property
    def files(self) -> dict[str, Path]:
        """The file of each phase's adapter."""
        return {phase.name: self.folder / phase.file for phase in self.phases}

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

    def plan(self, backbone: Backbone, strength: float | None = None) -> StepPlan:
        """For each of the K steps: the model's noise level, how far the latents move, the active adapter.

        Args:
            backbone: The base.
            strength: The share of the steps that run, from an image; None = all of them, from noise.

        Raises:
            ValueError: The path is for another number of phases; or as `stepping.first_step` does.
        """
        counts = [len(phase.steps) for phase in self.phases]
        steps = stepping.Steps(self.u, counts, self.teacher_steps, self.height, self.width)
        sigmas, moves = stepping.PATHS[self.path](steps, backbone.schedule)
        starts = {phase.name: phase.u[0] for phase in self.phases}
        adapters = tuple(adapter_at(u, starts) for u in self.u)
        plan = StepPlan(sigmas, adapters, None if self.path == "consistent" else moves, self.solver)
        return plan if strength is None else plan.tail(stepping.first_step(self.path, len(self.u), strength))

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

    def _check_phases(self) -> None:
        manifest, names = self.folder / MANIFEST, [phase.name for phase in self.phases]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"{manifest}: phases must have one or more entries of different names, got {names}")
        _require(self.folder, *(phase.file for phase in self.phases))
        for file in files(self.folder):
            if file.endswith(SUFFIX) and file not in {phase.file for phase in self.phases}:
                raise ValueError(f"{self.folder} must hold the adapters of {MANIFEST} alone, got {file}")
        u = tuple(level for phase in self.phases for level in phase.u)
        sigmas = (*(sigma for phase in self.phases for sigma in phase.sigmas[:-1]), *self.phases[-1].sigmas[-1:])
        joined = all(one.sigmas[-1:] == other.sigmas[:1] for one, other in pairwise(self.phases))
        own = all(len(phase.steps) == len(phase.u) == len(phase.sigmas) - 1 > 0 for phase in self.phases)
        whole = joined and own and u == self.u and sigmas[-1] == 0
        if not whole or any(later >= earlier for earlier, later in pairwise(sigmas)):
            got = " and ".join(str(list(phase.sigmas)) for phase in self.phases)
            raise ValueError(
                f"{manifest}: each phase must end where the next one starts, and sigma go down to 0, "
                f"got {got} at {len(self.u)} levels"
            )


def _pair(phases: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The phases of format 1, a mapping of slow and fast, as the list of format 2."""
    return [{"name": name, "file": name + SUFFIX, **phases[name]} for name in PHASES]


FORMATS: dict[int, Callable[[Any], Iterable[Mapping[str, Any]]]] = {1: _pair, MANIFEST_FORMAT: list}
"""How the phases of each format of the manifest are read."""


def _require(folder: Path, *names: str) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is no bundle: {name} is missing")


def bundle_digest(folder: str | Path) -> str:
    """ "sha256:<hex>" over a bundle's file names and bytes; the registry identifies a bundle by this digest."""
    return folder_digest(folder)
