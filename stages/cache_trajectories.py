"""Records how the teacher moves from noise to image."""

from pipeline import artifacts, trajectories
from pipeline.params import Params
from stages import progress, stage_command


@stage_command("cache_trajectories")
def main(params: Params) -> None:
    """Runs the teacher on the training prompts; writes its states, the conditioning and an index."""
    settings = params.trajectories
    prompts = trajectories.load_prompts(settings.prompts_file, settings.prompts, "train", settings.seed, "trajectories")
    recording = trajectories.Recording.from_params(params, prompts)
    trajectories.cache(params, lambda backbone: recording, artifacts.TRAJECTORIES, progress)


if __name__ == "__main__":
    main()
