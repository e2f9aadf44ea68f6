"""Runs the teacher and writes its trajectories, shard by shard, into the files that `trajectories` describes."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline import artifacts, backbones
from pipeline.backbones import base, precision
from pipeline.backbones.base import Backbone, Conditioning
from pipeline.flow.sampling import euler_states
from pipeline.flow.schedule import Schedule
from pipeline.params import Params
from pipeline.progress import Progress
from pipeline.recording.trajectories import INDEX, NEGATIVE, VERSION, Recording, shard_name
from pipeline.styles import Lora, content


def conditioning_name(number: int) -> str:
    """The file that holds a shard's conditioning until the shard is recorded."""
    return f"conditioning-{number:05d}.safetensors"


def encode(backbone: Backbone, recording: Recording, scratch: Path) -> None:
    """Writes the conditioning that `scratch` lacks, so that the text encoders can be freed before `record` begins.

    Args:
        backbone: The teacher with its text encoders.
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
    """Writes the shards that `scratch` lacks, and yields (shard number, steps done) after each Euler step.

    Args:
        backbone: The teacher with its transformer.
        recording: What to record.
        scratch: A folder for this teacher and recording alone, see recording_key, with the files of `encode`. Every
            file in it is complete.

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
        conditioning = {name: tensor.clone() for name, tensor in waiting.items()}  # aligned, as an encoder's are
        states: list[Tensor] = []
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
    """Writes a whole recording to `folder`; a killed run goes on from its last shard.

    Args:
        params: All parameters.
        plan: Gives the recording for a teacher with its text encoders.
        folder: The artifact; the checkpoints have the same name.
        progress: Opens a progress bar of `total`, `what` and `unit`.

    Raises:
        ValueError: As `backbones.load`, `plan` and `record` do.
    """
    teacher, device = params.teacher, params.runtime.device
    backbone = backbones.load(teacher.base, device, ("text",))
    backbone.check_files(backbones.PARTS)  # now, not after hours: the files may have changed since the stage `check`
    recording, schedule = plan(backbone), backbone.schedule(teacher.height, teacher.width)
    key = recording_key(recording, teacher.path, backbone.device, teacher.loras)
    scratch = artifacts.checkpoint_dir(f"cache_{folder.name}", key)
    encode(backbone, recording, scratch)
    del backbone  # frees a large teacher's text encoders before its transformer is loaded
    backbone = backbones.load(teacher.base, device, ("transformer",))
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
    """Turns a finished recording in `scratch` into the cache `folder`, whole, and removes `scratch`."""
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
    guided = base.guided(
        backbone,
        conditioning,
        negative,
        guidance_scale=recording.guidance_scale,
        true_cfg_scale=recording.true_cfg_scale,
        grid=grid,
    )

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        with precision.computing(backbone, recording.precision):
            return guided(x, sigma)

    x = backbone.noise(range(recording.seed + first, recording.seed + first + count), height, width)
    return euler_states(velocity, x, backbone.schedule(height, width).sigmas(recording.levels))
