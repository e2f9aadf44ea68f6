"""Records how the teacher moves from noise to image."""

from pipeline import artifacts, prompts
from pipeline.console import progress
from pipeline.params import Params
from pipeline.recording import record
from pipeline.recording.trajectories import Recording
from stages import stage_command


@stage_command("cache_trajectories")
def main(params: Params) -> None:
    """Runs the teacher on the training prompts; writes its states, the conditioning and an index."""
    settings = params.trajectories
    texts = prompts.load_prompts(settings.prompts_file, settings.prompts, "train", settings.seed, "trajectories")
    record.cache(params, lambda backbone: Recording.from_params(params, texts), artifacts.TRAJECTORIES, progress)


if __name__ == "__main__":
    main()
