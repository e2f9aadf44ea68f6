"""The files of a bundle: adapters as stock diffusers loads them, one per phase, and a manifest for the sampler.

<phase>.safetensors   transformer.<module>.lora_A/B.weight, scale folded into B; slow and fast in a pair
adapter_config.json   peft's, with lora_alpha = r
glance.json           the manifest: the base, the levels, the phases, the guidance
README.md             the model card
"""

from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline import adapters, backbones
from pipeline.artifacts import files, folder_digest, read_json, write_json
from pipeline.backbones.base import Backbone
from pipeline.backbones.teacher import Teacher
from pipeline.bundle import schemas, upgrading
from pipeline.bundle.parts import SUFFIX, BundlePhase, Guidance, Retention
from pipeline.flow import stepping
from pipeline.flow.sampling import StepPlan, adapter_at
from pipeline.styles import Lora

MANIFEST = "glance.json"
CARD = "README.md"
ALIKE = (
    *("base_model", "base_digest", "family", "teacher_steps", "height", "width", "max_sequence_length", "dtype"),
    *("base_license", "license", "rank", "path", "solver"),
)
"""Fields of a bundle that are keys of the contract with the same value."""
SCALE = 1.0
"""The strength to load the adapters with: alpha / rank is multiplied into B."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """The contract in glance.json, and the folder that it lies in."""

    folder: Path
    base_model: str
    base_digest: str
    family: str
    teacher_steps: int
    phases: tuple[BundlePhase, ...]
    """In order, of any number."""
    height: int
    width: int
    max_sequence_length: int
    dtype: str
    """Dtype of the base's weights and latents, one of `teacher.DTYPES`."""
    guidance: Guidance
    base_license: str
    license: str
    """Licence of the adapters."""
    rank: int
    path: str = "consistent"
    """How the latents move, one of `stepping.PATHS`."""
    solver: str = "euler"
    """One of `solvers.SOLVERS`."""
    loras: tuple[Lora, ...] = ()
    """The LoRAs fused into the base, with the digests of their files."""
    retention: Retention | None = None
    """None before it is measured."""
    base_folder: Path | None = None
    """Where the base is on this machine, which no manifest says; None = where `base_model` says."""

    @classmethod
    def load(cls, folder: str | Path) -> "Bundle":
        """Reads a bundle and checks that its parts fit.

        Raises:
            ValueError: A file is missing, the manifest is no contract (see `from_json`), an adapter belongs to no
                phase, or an adapter is not a LoRA of the stated rank.
        """
        folder = Path(folder)
        _require(folder, MANIFEST, adapters.CONFIG, CARD)
        bundle = cls.from_json(read_json(folder / MANIFEST), folder, str(folder / MANIFEST))
        bundle._check_files()
        bundle.states()
        return bundle

    @classmethod
    def from_json(cls, content: Any, folder: Path, source: str = MANIFEST) -> "Bundle":
        """The bundle that a contract describes, whose files may be missing.

        Args:
            content: The content of a manifest, of any format.
            folder: Where the adapters lie.
            source: The contract's name in messages.

        Raises:
            ValueError: The content is no contract, two phases have one name, the phases do not join, or a list is not
                what the phases say.
        """
        content = upgrading.current(content, source)
        schemas.check(content, source)
        measured = content["retention"]
        try:
            bundle = cls(
                folder=folder,
                phases=tuple(map(BundlePhase.from_json, content["phases"])),
                guidance=Guidance(**content["guidance"]),
                loras=tuple(Lora(**entry) for entry in content["loras"]),
                retention=None if measured is None else Retention(**measured),
                **{key: content[key] for key in ALIKE},
            )
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        bundle._check_path(source)
        own = bundle.to_json()
        for key in ("u", "sigmas", "steps", "handoffs"):
            if content[key] != own[key]:
                raise ValueError(f"{source}: {key} must be {own[key]} as the phases say, got {content[key]}")
        return bundle

    def to_json(self) -> dict[str, Any]:
        """The contract in the current format, as JSON's types: what glance.json holds, and `from_json` reads back."""
        return {
            "format": schemas.FORMAT,
            "base_model": self.base_model,
            "base_digest": self.base_digest,
            "loras": [asdict(lora) for lora in self.loras],
            "family": self.family,
            "base_license": self.base_license,
            "license": self.license,
            "u": list(self.u),
            "sigmas": list(self.sigmas),
            "steps": list(self.steps),
            "teacher_steps": self.teacher_steps,
            "phases": [phase.to_json() for phase in self.phases],
            "handoffs": [
                {"step": phase.steps[0], "u": phase.u[0], "sigma": phase.sigmas[0]} for phase in self.phases[1:]
            ],
            "height": self.height,
            "width": self.width,
            "max_sequence_length": self.max_sequence_length,
            "dtype": self.dtype,
            "guidance": asdict(self.guidance),
            "rank": self.rank,
            "scale": SCALE,
            "path": self.path,
            "solver": self.solver,
            "retention": None if self.retention is None else asdict(self.retention),
        }

    def write_manifest(self, folder: Path) -> None:
        """Writes glance.json into a folder. Raises ValueError unless the schema takes the contract."""
        content = self.to_json()
        schemas.check(content, MANIFEST)
        write_json(folder / MANIFEST, content)

    @property
    def u(self) -> tuple[float, ...]:
        """Base levels of the K steps: what stock pipelines take as `sigmas`."""
        return tuple(level for phase in self.phases for level in phase.u)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Final noise levels of the K steps for the trained size, then 0."""
        return (*(sigma for phase in self.phases for sigma in phase.sigmas[:-1]), *self.phases[-1].sigmas[-1:])

    @property
    def steps(self) -> tuple[int, ...]:
        """Teacher steps at which the K steps start; the nearest ones, if the levels are not the teacher's."""
        return tuple(step for phase in self.phases for step in phase.steps)

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
        return Teacher(path=self._base_folder(path), dtype=self.dtype, quantization=quantization, loras=self.loras)

    def check_base(self, path: str | Path | None = None) -> None:
        """Refuses a folder that does not hold the model that the adapters belong to.

        Args:
            path: The folder; None = the folder that the manifest names.

        Raises:
            ValueError: The folder is missing or holds another model, or a LoRA that is fused into the model is missing.
            FileNotFoundError: The folder holds no transformer.
        """
        path = self._base_folder(path)
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

    def _base_folder(self, path: str | Path | None) -> Path:
        return Path(path or self.base_folder or self.base_model)

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

    def _check_files(self) -> None:
        _require(self.folder, *(phase.file for phase in self.phases))
        for file in files(self.folder):
            if file.endswith(SUFFIX) and file not in {phase.file for phase in self.phases}:
                raise ValueError(f"{self.folder} must hold the adapters of {MANIFEST} alone, got {file}")

    def _check_path(self, source: str) -> None:
        names, sigmas = [phase.name for phase in self.phases], self.sigmas
        if len(set(names)) < len(names):
            raise ValueError(f"{source}: phases must have entries of different names, got {names}")
        joined = all(one.sigmas[-1:] == other.sigmas[:1] for one, other in pairwise(self.phases))
        own = all(len(phase.steps) == len(phase.u) == len(phase.sigmas) - 1 > 0 for phase in self.phases)
        whole = joined and own and sigmas[-1] == 0
        if not whole or any(later >= earlier for earlier, later in pairwise(sigmas)):
            got = " and ".join(str(list(phase.sigmas)) for phase in self.phases)
            raise ValueError(
                f"{source}: each phase must end where the next one starts, and sigma go down to 0, "
                f"got {got} at {len(self.u)} levels"
            )


def _require(folder: Path, *names: str) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is no bundle: {name} is missing")


def bundle_digest(folder: str | Path) -> str:
    """ "sha256:<hex>" over a bundle's file names and bytes; the registry identifies a bundle by this digest."""
    return folder_digest(folder)
