"""Measures on held-out prompts what the speed costs."""

from pipeline import artifacts
from pipeline.evaluation import inputs, run
from pipeline.params import Params
from stages import progress, stage_command


@stage_command("evaluate")
def main(params: Params) -> None:
    """Compares the student with its teacher and its rivals; writes metrics, tables, pictures and the report."""
    run.evaluate(params, inputs.of_stages(params), artifacts.EVALUATION, progress)


if __name__ == "__main__":
    main()
