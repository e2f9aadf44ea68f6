"""Makes the images of every arm on held-out prompts."""

from pipeline import artifacts
from pipeline.console import progress
from pipeline.evaluation import generation, inputs
from pipeline.params import Params
from stages import stage_command


@stage_command("generate_images")
def main(params: Params) -> None:
    """Makes the images of the student, its teacher and its rivals from the same noise for the same prompts."""
    generation.generate(inputs.read(params, inputs.of_stages(params)), artifacts.IMAGES, progress)


if __name__ == "__main__":
    main()
