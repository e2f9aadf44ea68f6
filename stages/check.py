"""Looks up every name and file of params.yaml, before hours are spent on them."""

from pipeline import artifacts, checking
from pipeline.params import Params
from stages import stage_command


@stage_command("check", checking.load)
def main(params: Params) -> None:
    """Reports every fault of params.yaml in a sentence; without faults, writes the same file as always."""
    artifacts.write_json(artifacts.CHECK, checking.PASSED)


if __name__ == "__main__":
    main()
