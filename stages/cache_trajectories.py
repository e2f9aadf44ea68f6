"""Records how the teacher moves from noise to image."""

from pipeline import artifacts, backbones
from pipeline.params import Params
from pipeline.trajectories import Recording, encode, load_prompts, publish, record, recording_key
from stages import progress, stage_command


@stage_command("cache_trajectories")
def main(params: Params) -> None:
    """Runs the teacher on the training prompts; writes its states, the conditioning and an index."""
    settings, teacher = params.trajectories, params.teacher
    prompts = load_prompts(settings.prompts_file, settings.prompts, "train", settings.seed, "trajectories")
    recording = Recording.from_params(params, prompts)
    device, how = params.runtime.device, (teacher.dtype, teacher.quantization, teacher.loras)
    backbone = backbones.load(teacher.path, device, ("text",), *how)
    schedule = backbone.schedule(teacher.height, teacher.width)
    key = recording_key(recording, teacher.path, backbone.device, teacher.loras)
    scratch = artifacts.checkpoint_dir("cache_trajectories", key)
    encode(backbone, recording, scratch)
    del backbone  # a large teacher's text encoders are gone before its transformer comes
    backbone = backbones.load(teacher.path, device, ("transformer",), *how)
    total = len(recording.ranges) * recording.steps
    with progress(total=total, what=f"recording {len(recording)} trajectories", unit="step") as bar:
        for number, steps in record(backbone, recording, scratch):
            bar.set_postfix_str(recording.describe(number), refresh=False)
            bar.update(steps)
    publish(recording, schedule, backbones.digest(teacher.path, teacher.loras), scratch, artifacts.TRAJECTORIES)


if __name__ == "__main__":
    main()
