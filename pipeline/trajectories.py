"""The teacher's trajectories on disk: recorded shard by shard, read back lazily.

    index.json                what was recorded, and the shards with their digests
    negative.safetensors      conditioning of the negative prompt, one row
    shard-00000.safetensors   states (B, N + 1, T, C), seed (B,), prompt_index (B,), cond.<name> (B, ...)

A shard depends on the teacher, the recording and its own range of trajectories only, and is written whole. So shards
can be made in any order or place, and a killed run goes on with those that it lacks.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from pipeline import artifacts, backbones
from pipeline.backbones import base
from pipeline.backbones.base import Backbone, Conditioning
from pipeline.guidance import forwards
from pipeline.loras import Lora, content
from pipeline.params import Params
from pipeline.progress import Progress
from pipeline.sampling import euler_states
from pipeline.scenes import captions
from pipeline.schedule import Schedule, base_levels

VERSION = 2
INDEX = "index.json"
NEGATIVE = "negative.safetensors"


def load_prompts(prompts_file: str | None, count: int, split: str, seed: int, section: str) -> list[str]:
    """The first `count` prompts of a text file (one a line, empty lines skipped), or captions of the scene grammar.

    Args:
        prompts_file: The file; None for the grammar.
        count: How many.
        split: The grammar's split: "train", "validation" or "evaluation".
        seed: Of the grammar's draw.
        section: The section of params.yaml that an error names.

    Raises:
        ValueError: The file is missing, has no prompt, or has fewer than `count`.
    """
    if prompts_file is None:
        return captions.sample(split, count, seed)
    try:
        lines = Path(prompts_file).read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"{section}.prompts_file must be a text file, got {prompts_file}") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{section}.prompts_file must hold a prompt a line, and {prompts_file} is empty")
    if count > len(prompts):
        raise ValueError(f"{section}.prompts must be at most {len(prompts)}, what {prompts_file} holds, got {count}")
    return prompts[:count]


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

    @classmethod
    def from_params(cls, params: Params, prompts: Sequence[str]) -> "Recording":
        """The recording that params.teacher and params.trajectories ask for."""
        teacher, settings = params.teacher, params.trajectories
        return cls(
            prompts=tuple(prompts),
            seeds_per_prompt=settings.seeds_per_prompt,
            seed=settings.seed,
            shard_size=settings.shard_size,
            levels=tuple(base_levels(teacher.steps).tolist()),
            height=teacher.height,
            width=teacher.width,
            max_sequence_length=teacher.max_sequence_length,
            true_cfg_scale=teacher.true_cfg_scale,
            guidance_scale=teacher.guidance_scale,
            negative_prompt=teacher.negative_prompt,
            dtype=teacher.dtype,
            quantization=teacher.quantization,
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


def conditioning_name(number: int) -> str:
    """The file in which the conditioning of a shard waits for its recording."""
    return f"conditioning-{number:05d}.safetensors"


def encode(backbone: Backbone, recording: Recording, scratch: Path) -> None:
    """Writes into `scratch` the conditioning that it lacks, so that the text encoders can go before `record` begins.

    Args:
        backbone: With its text encoders.
        recording: What will be recorded.
        scratch: As for `record`.
    """
    if not (scratch / NEGATIVE).exists():
        negative = backbone.encode([recording.negative_prompt], recording.max_sequence_length)
        artifacts.save_safetensors(scratch / NEGATIVE, negative)
    for number, (first, count) in enumerate(recording.ranges):
        waiting = scratch / conditioning_name(number)
        if not (scratch / shard_name(number)).exists() and not waiting.exists():
            artifacts.save_safetensors(waiting, _conditioning(backbone, recording, first, count))


def record(backbone: Backbone, recording: Recording, scratch: Path) -> Iterator[tuple[int, int]]:
    """Writes into `scratch` the shards that it lacks, and yields (shard number, steps done) after each Euler step.

    Args:
        backbone: With its transformer.
        recording: What to record.
        scratch: Belongs to this teacher and recording alone, see recording_key; a file in it is a finished one. Holds
            what `encode` wrote.

    Raises:
        ValueError: The teacher's latents stop being finite.
    """
    negative = load_file(scratch / NEGATIVE)
    for number, (first, count) in enumerate(recording.ranges):
        file = shard_name(number)
        if (scratch / file).exists():
            yield number, recording.steps
            continue
        waiting = load_file(scratch / conditioning_name(number))
        conditioning = {name: tensor.clone() for name, tensor in waiting.items()}  # aligned, as an encoder gives them
        states = []
        for state in _states(backbone, recording, conditioning, negative, first, count):
            if not torch.isfinite(state).all():
                raise ValueError(f"trajectories: the teacher's latents are not finite at step {len(states)} of {file}")
            states.append(state.cpu())
            if len(states) > 1:
                yield number, 1
        tensors = {
            "states": torch.stack(states, dim=1),
            "seed": torch.arange(recording.seed + first, recording.seed + first + count),
            "prompt_index": torch.tensor(recording.prompt_index(first, count)),
            **{f"cond.{name}": tensor for name, tensor in conditioning.items()},
        }
        artifacts.save_safetensors(scratch / file, tensors)
        (scratch / conditioning_name(number)).unlink()


def cache(params: Params, plan: Callable[[Backbone], Recording], folder: Path, progress: Progress) -> None:
    """Records into `folder`, whole; a killed run goes on from its last shard.

    Args:
        params: All parameters.
        plan: What to record, of a teacher with its text encoders.
        folder: An artifact; its name is that of the checkpoints.
        progress: Opens a progress bar of `total`, `what` and `unit`.

    Raises:
        ValueError: As `backbones.load`, `plan` and `record` do.
    """
    teacher, device = params.teacher, params.runtime.device
    how = teacher.dtype, teacher.quantization, teacher.loras
    backbone = backbones.load(teacher.path, device, ("text",), *how)
    recording, schedule = plan(backbone), backbone.schedule(teacher.height, teacher.width)
    key = recording_key(recording, teacher.path, backbone.device, teacher.loras)
    scratch = artifacts.checkpoint_dir(f"cache_{folder.name}", key)
    encode(backbone, recording, scratch)
    del backbone  # a large teacher's text encoders are gone before its transformer comes
    backbone = backbones.load(teacher.path, device, ("transformer",), *how)
    total = len(recording.ranges) * recording.steps
    with progress(total=total, what=f"recording {len(recording)} {folder.name}", unit="step") as bar:
        for number, steps in record(backbone, recording, scratch):
            bar.set_postfix_str(recording.describe(number), refresh=False)
            bar.update(steps)
    publish(recording, schedule, backbones.digest(teacher.path, teacher.loras), scratch, folder)


def recording_key(recording: Recording, teacher: str | Path, device: torch.device, loras: Sequence[Lora] = ()) -> str:
    """Digest of all that the shards depend on: the recording, the teacher's files, the kind of device and the code."""
    files = [artifacts.folder_digest(teacher), content(loras)]
    return artifacts.digest_of([recording, files, torch.device(device).type, artifacts.code_digest()])


def publish(recording: Recording, schedule: Schedule, teacher_digest: str, scratch: Path, folder: Path) -> None:
    """Makes a finished recording in `scratch` the cache at `folder`, whole, and removes `scratch`."""
    shards = [
        {"file": shard_name(i), "digest": artifacts.file_digest(scratch / shard_name(i)), "first": first, "count": n}
        for i, (first, n) in enumerate(recording.ranges)
    ]
    content = {
        "version": VERSION,
        "teacher": teacher_digest,
        "schedule": asdict(schedule),
        "sigmas": schedule.sigmas(recording.levels).tolist(),
        "nfe": recording.nfe,
        **asdict(recording),
        "negative": {"file": NEGATIVE, "digest": artifacts.file_digest(scratch / NEGATIVE)},
        "shards": shards,
    }
    with artifacts.atomic_dir(folder) as partial:
        for entry in (content["negative"], *shards):
            artifacts.link_or_copy(scratch / entry["file"], partial / entry["file"])
        artifacts.write_json(partial / INDEX, content)
    shutil.rmtree(scratch)


class Trajectories:
    """Reads a cache. Shards are mapped into memory: what is not asked for is not read.

    Args:
        folder: Where the cache lies.
        verify: Compare each file with its digest first.

    Raises:
        FileNotFoundError: There is no index.
        ValueError: The index is of another version or incomplete, or a file is missing or not what was written.
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

    def states(self, ids: Sequence[int] | Tensor, steps: Sequence[int] | Tensor) -> Tensor:
        """States of trajectories at steps; state i lies at sigmas[i].

        Args:
            ids: Trajectories, length B.
            steps: Teacher steps, length n: the same of each trajectory; or shape (B, n): its own of each.

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
        result = None
        for number in numbers.unique().tolist():
            where = (numbers == number).nonzero().squeeze(1)
            rows, tensor = ids[where] - self._first[number], self._shard(number)[name]
            part = tensor[rows] if steps is None else tensor[rows[:, None], steps[where]]
            if result is None:
                result = part.new_empty(len(ids), *part.shape[1:])
            result[where] = part
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
        mend = "remove the folder and run `dvc repro cache_trajectories`"
        if not (self.folder / file).is_file():
            raise ValueError(f"trajectories: {file} is missing from {self.folder}; {mend}")
        if artifacts.file_digest(self.folder / file) != digest:
            raise ValueError(f"trajectories: {file} does not match its digest in {self.folder / INDEX}; {mend}")


def _conditioning(backbone: Backbone, recording: Recording, first: int, count: int) -> Conditioning:
    """Encodes each prompt of a range once."""
    numbers = recording.prompt_index(first, count)
    prompts = list(recording.prompts[numbers[0] : numbers[-1] + 1])
    encoded = backbone.encode(prompts, recording.max_sequence_length)
    return base.index(encoded, [number - numbers[0] for number in numbers])


def _states(
    backbone: Backbone, recording: Recording, conditioning: Conditioning, negative: Conditioning, first: int, count: int
) -> Iterator[Tensor]:
    """The teacher's states of one range, each (count, T, C)."""
    height, width = recording.height, recording.width
    grid = backbone.grid(height, width)
    velocity = backbone.guide(
        base.field(backbone, conditioning, recording.guidance_scale, grid),
        base.field(backbone, base.repeat(negative, count), recording.guidance_scale, grid),
        recording.true_cfg_scale,
    )
    x = backbone.noise(range(recording.seed + first, recording.seed + first + count), height, width)
    return euler_states(velocity, x, backbone.schedule(height, width).sigmas(recording.levels))
