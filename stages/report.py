"""Shows the results of the evaluation on one page."""

from pipeline import artifacts
from pipeline.evaluation.images import ImageSet
from pipeline.evaluation.report import content, histories, page
from pipeline.params import Params
from stages import stage_command


@stage_command("report")
def main(params: Params) -> None:
    """Writes report.html: scores, times, pictures, losses and provenance."""
    losses = histories.read(artifacts.TRAIN_SLOW, artifacts.TRAIN_FAST, artifacts.TRAIN_CONTROLS)
    images = ImageSet.load(artifacts.IMAGES)
    shown = content.gather(params, images, artifacts.EVALUATION, losses, trained_here=True)
    page.write(shown, artifacts.EVALUATION / "report.html")


if __name__ == "__main__":
    main()
