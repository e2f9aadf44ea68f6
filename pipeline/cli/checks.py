"""`glance check`: what can be said of LoRA files and bundles of anybody."""

import json
from itertools import groupby
from pathlib import Path

import click

from pipeline.cli.edges import bundle_folder, one_sentence, refuse_below_root


@click.command()
@click.argument("path")
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="The base model's folder  [default: the folder that the bundle names, else params.yaml's teacher]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@one_sentence
def check(path: str, base: Path | None, as_json: bool) -> None:
    """Say whether PATH can be used on a base model, and what is off, one line per finding.

    PATH is a LoRA file of any trainer, a folder that peft saved, a bundle as a folder or in one file, or a version such
    as models:/name@champion. The exit code is 1 if it cannot be used.
    """
    folder = bundle_folder(path, file=True)

    from pipeline.bundle import checkup

    report = checkup.check(folder, base, _teacher)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2, allow_nan=False))
    else:
        for file, findings in groupby(report.findings, key=lambda one: one.file):
            if file is not None:
                click.echo(f"{file}:")
            for one in findings:
                click.echo(f"{one.level:4} {one.name}: {one.text}")
    if report.reason is not None:
        raise ValueError(f"{folder} cannot be used: {report.reason}")


def _teacher() -> Path:
    """The teacher's folder in params.yaml of the working directory."""
    refuse_below_root()

    from pipeline import params

    if not Path("params.yaml").is_file():
        raise ValueError("--base must name the base model's folder where no params.yaml is")
    return Path(params.load().teacher.path)
