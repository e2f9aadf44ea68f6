"""The teacher's trajectories on disk: what a recording consists of, and its lazy reader.

    index.json                what was recorded, and the shards with their digests
    negative.safetensors      conditioning of the negative prompt, one row
    shard-00000.safetensors   states (B, N + 1, T, C), seed (B,), prompt_index (B,), cond.<name> (B, ...)

A shard depends on the teacher, the recording and its own range of trajectories only, and is written whole. So shards
can be made in any order or place, and a killed run goes on with the missing shards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from pipeline import artifacts
from pipeline.backbones.base import Conditioning
from pipeline.flow.guidance import forwards
from pipeline.flow.schedule import LEVEL_TOLERANCE, Schedule, base_levels
from pipeline.params import Params

VERSION = 3
INDEX = "index.json"
NEGATIVE = "negative.safetensors"


@dataclass(frozen=True)
class Recording:
    """What is recorded of a teacher: trajectory i is prompts[i // seeds_per_prompt] from the noise of seed + i."""

    prompts: tuple[str, ...]
    seeds_per_prompt: int
    seed: int
    shard_size: int
    levels: tuple[float, ...]
    """Base level u at which each Euler step starts, length N."""
    height: int
    width: int
    max_sequence_length: int
    true_cfg_scale: float
    guidance_scale: float
    negative_prompt: str
    dtype: str
    quantization: str
    precision: str

    @classmethod
    def from_params(cls, params: Params, prompts: Sequence[str]) -> "Recording":
        """The recording that params.teacher and params.trajectories ask for."""
        teacher, settings = params.teacher, params.trajectories
        return cls(
            prompts=tuple(prompts),
            seeds_per_prompt=settings.seeds_per_prompt,
            seed=settings.seed,
            shard_size=settings.shard_size,
            levels=tuple(base_levels(settings.steps).tolist()),
            height=teacher.height,
            width=teacher.width,
            max_sequence_length=teacher.max_sequence_length,
            true_cfg_scale=teacher.true_cfg_scale,
            guidance_scale=teacher.guidance_scale,
            negative_prompt=teacher.negative_prompt,
            dtype=teacher.dtype,
            quantization=teacher.quantization,
            precision=settings.precision,
        )

    def __len__(self) -> int:
        """How many trajectories."""
        return len(self.prompts) * self.seeds_per_prompt

    @property
    def steps(self) -> int:
        """Euler steps N of a trajectory."""
        return len(self.levels)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """(first trajectory, count) of each shard."""
        return [(first, min(self.shard_size, len(self) - first)) for first in range(0, len(self), self.shard_size)]

    @property
    def nfe(self) -> int:
        """Transformer forwards per trajectory."""
        return self.steps * forwards(self.true_cfg_scale)

    def prompt_index(self, first: int, count: int) -> list[int]:
        """The prompt of each trajectory of a range."""
        return [i // self.seeds_per_prompt for i in range(first, first + count)]

    def describe(self, number: int) -> str:
        """A shard in words, by its first and last prompt."""
        numbers = self.prompt_index(*self.ranges[number])
        ends = dict.fromkeys((self.prompts[numbers[0]], self.prompts[numbers[-1]]))
        return f"shard {number + 1} of {len(self.ranges)}: {' .. '.join(ends)}"


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"shard-{number:05d}.safetensors"


class Trajectories:
    """Reads a cache. Shards are memory-mapped: only the tensors that are asked for are read.

    Args:
        folder: Where the cache lies.
        verify: Compare each file with its digest first.

    Raises:
        FileNotFoundError: There is no index.
        ValueError: The index is of another version or incomplete, or a file is missing or does not match its digest.
    """

    def __init__(self, folder: str | Path = artifacts.TRAJECTORIES, verify: bool = True):
        self.folder = Path(folder)
        content = artifacts.read_json(self.folder / INDEX)
        if content.get("version") != VERSION:
            raise ValueError(f"trajectories: version must be {VERSION}, got {content.get('version')}")
        try:
            self.teacher: str = content["teacher"]
            self.schedule = Schedule(**content["schedule"])
            self.sigmas = torch.tensor(content["sigmas"], dtype=torch.float64)
            self.nfe: int = content["nfe"]
            fields = {name: content[name] for name in Recording.__dataclass_fields__}
            lists = {name: tuple(fields[name]) for name in ("prompts", "levels")}
            self.recording = Recording(**{**fields, **lists})
            self._files = [entry["file"] for entry in content["shards"]]
            self._first = torch.tensor([entry["first"] for entry in content["shards"]])
            digests = {entry["file"]: entry["digest"] for entry in (content["negative"], *content["shards"])}
        except (KeyError, TypeError) as error:
            raise ValueError(f"trajectories: {self.folder / INDEX} is not a complete index ({error})") from error
        if verify:
            for file, digest in digests.items():
                self._verify(file, digest)
        self._tensors: dict[str, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        """How many trajectories."""
        return len(self.recording)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The recorded prompts; trajectory i has prompts[i // seeds_per_prompt]."""
        return self.recording.prompts

    @property
    def steps(self) -> int:
        """The recorded number of Euler steps N; a trajectory has N + 1 states."""
        return self.recording.steps

    def pairs(self, levels: Sequence[float]) -> tuple[tuple[int, int], ...]:
        """(start, end) of each step in recorded steps, for a run that starts a step at each of `levels` and ends at 0.

        Raises:
            ValueError: A level was not recorded.
        """
        recorded = torch.tensor(self.recording.levels, dtype=torch.float64)
        gaps = (torch.tensor(levels, dtype=torch.float64)[:, None] - recorded).abs()
        for level, gap in zip(levels, gaps.min(1).values.tolist(), strict=True):
            if gap > LEVEL_TOLERANCE:
                raise ValueError(f"trajectories: {self.folder} has no states at base level {level:g}; record them anew")
        return tuple(pairwise([*gaps.argmin(1).tolist(), self.steps]))

    def states(self, ids: Sequence[int] | Tensor, steps: Sequence[int] | Tensor) -> Tensor:
        """States of trajectories at steps; state i lies at sigmas[i].

        Args:
            ids: Trajectories, length B.
            steps: Recorded steps: length n, the same for all trajectories; or shape (B, n), a row for each trajectory.

        Returns:
            Shape (B, n, T, C).
        """
        steps = torch.as_tensor(steps, dtype=torch.long)
        steps = steps.expand(len(ids), -1) if steps.ndim == 1 else steps
        return self._gather(ids, "states", steps)

    def conditioning(self, ids: Sequence[int] | Tensor) -> Conditioning:
        """The conditioning of trajectories, first dimension B."""
        names = [name for name in self._shard(0) if name.startswith("cond.")]
        return {name.removeprefix("cond."): self._gather(ids, name) for name in names}

    def negative(self) -> Conditioning:
        """The conditioning of the negative prompt, one row."""
        return load_file(self.folder / NEGATIVE)

    def seeds(self, ids: Sequence[int] | Tensor) -> Tensor:
        """The noise seeds of trajectories, int64 (B,)."""
        return self._gather(ids, "seed")

    def _gather(self, ids: Sequence[int] | Tensor, name: str, steps: Tensor | None = None) -> Tensor:
        ids = torch.as_tensor(ids, dtype=torch.long)
        if len(ids) == 0 or ids.min() < 0 or ids.max() >= len(self):
            raise IndexError(f"trajectories: ids must lie in 0 .. {len(self) - 1}, got {ids.tolist()}")
        numbers = torch.searchsorted(self._first, ids, right=True) - 1
        result: Tensor | None = None
        for number in numbers.unique().tolist():
            where = (numbers == number).nonzero().squeeze(1)
            rows, tensor = ids[where] - self._first[number], self._shard(number)[name]
            part = tensor[rows] if steps is None else tensor[rows[:, None], steps[where]]
            if result is None:
                result = part.new_empty(len(ids), *part.shape[1:])
            result[where] = part
        assert result is not None, "there is at least one id"
        return result

    def _shard(self, number: int) -> dict[str, Tensor]:
        file = self._files[number]
        if file not in self._tensors:
            try:
                with safe_open(self.folder / file, framework="pt") as opened:
                    self._tensors[file] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            except SafetensorError as error:
                raise ValueError(f"trajectories: {file} is no safetensors file ({error})") from error
        return self._tensors[file]

    def _verify(self, file: str, digest: str) -> None:
        fix = "remove the folder and run `dvc repro cache_trajectories`"
        if not (self.folder / file).is_file():
            raise ValueError(f"trajectories: {file} is missing from {self.folder}; {fix}")
        if artifacts.file_digest(self.folder / file) != digest:
            raise ValueError(f"trajectories: {file} does not match its digest in {self.folder / INDEX}; {fix}")


def write_none(folder: Path) -> None:
    """Writes the index of a cache without trajectories."""
    with artifacts.atomic_dir(folder) as partial:
        artifacts.write_json(partial / INDEX, {"prompts": []})


def load(folder: str | Path) -> Trajectories | None:
    """The cache in a folder; None where `write_none` wrote it. Raises as `Trajectories` does."""
    return Trajectories(folder) if artifacts.read_json(Path(folder) / INDEX).get("prompts") != [] else None
