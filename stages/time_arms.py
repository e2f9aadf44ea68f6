"""Measures how long an image takes."""

from pipeline import artifacts
from pipeline.console import progress
from pipeline.evaluation import inputs, timing
from pipeline.params import Params
from stages import stage_command


@stage_command("time_arms")
def main(params: Params) -> None:
    """Times every arm in one run; writes latency.json."""
    timing.time_arms(inputs.read(params, inputs.of_stages(params)), artifacts.LATENCY, progress)


if __name__ == "__main__":
    main()
