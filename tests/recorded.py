"""A tiny teacher with recorded trajectories and a partition, for the tests of what is trained on them."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ruamel.yaml import YAML

from pipeline import artifacts, backbones, params, prompts
from pipeline.backbones.base import Backbone
from pipeline.params import Params
from pipeline.partition import Partition, compute
from pipeline.recording import anchors, record
from pipeline.recording.trajectories import Recording, Trajectories
from pipeline.training.data import TrainingData
from tests.tiny import make_tiny_flux

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Recorded:
    """Where the files lie, and the settings that they were made with."""

    teacher: Path
    trajectories: Path
    anchors: Path
    partition: Partition
    params: Params

    def backbone(self, parts=("transformer",)) -> Backbone:
        """A fresh backbone of the tiny teacher."""
        return backbones.load(self.teacher, "cpu", parts=parts)

    def loaded(self) -> TrainingData:
        """As the trainings read them."""
        return TrainingData(self.partition, Trajectories(self.trajectories), Trajectories(self.anchors))


def small_params(teacher: Path) -> Params:
    """The shipped parameters, cut to a teacher of 8 steps and a student of 2 + 2."""
    shipped = params.load(ROOT / "params.yaml")
    return replace(
        shipped,
        teacher=replace(shipped.teacher, path=str(teacher), steps=8),
        trajectories=replace(shipped.trajectories, prompts=6, shard_size=4, steps=8, precision="fp32"),
        anchors=replace(shipped.anchors, prompts=5),
        partition=replace(shipped.partition, rule="uniform", slow_steps=2, fast_steps=2),
        training=replace(shipped.training, rank=4, alpha=8.0, batch=8, anchor_batch=4),
        train_slow=replace(shipped.train_slow, train_steps=8),
        train_fast=replace(shipped.train_fast, train_steps=8),
        runtime=replace(shipped.runtime, checkpoint_every=3),
    )


def record_tiny(folder: Path) -> Recorded:
    """Writes a tiny teacher, its trajectories and anchors under `folder`."""
    teacher = folder / "teacher"
    make_tiny_flux(teacher)
    small = small_params(teacher)
    backbone = backbones.load(teacher, "cpu", parts=("text", "transformer"))
    texts = prompts.load_prompts(None, small.trajectories.prompts, "train", 0, "trajectories")
    schedule = backbone.schedule(small.teacher.height, small.teacher.width)
    partition = compute(small, schedule)
    recordings = {
        "trajectories": Recording.from_params(small, texts),
        "anchors": anchors.recording(small, partition, backbone.words()),
    }
    for name, asked in recordings.items():
        scratch = folder / f"{name}-scratch"
        scratch.mkdir()
        record.encode(backbone, asked, scratch)
        for _ in record.record(backbone, asked, scratch):
            pass
        record.publish(asked, schedule, backbones.digest(teacher), scratch, folder / name)
    return Recorded(teacher, folder / "trajectories", folder / "anchors", partition, small)


def workplace(folder: Path, recorded: Recorded, **sections) -> Path:
    """A folder in which a training stage runs; `sections` change parameters."""
    (folder / "artifacts").mkdir(parents=True)
    (folder / artifacts.TRAJECTORIES).symlink_to(recorded.trajectories)
    (folder / artifacts.ANCHORS).symlink_to(recorded.anchors)
    artifacts.write_json(folder / artifacts.PARTITION, recorded.partition.to_json())
    content = asdict(recorded.params)
    for section, changes in sections.items():
        content[section] |= changes
    content["train_controls"]["arms"] = list(content["train_controls"]["arms"])
    content["runtime"]["threads"] = 1
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(content, file)
    return folder
