"""`glance`: generate with a bundle; import, export, evaluate, register, promote or pull bundles; run the ablations.

Torch and MLflow are imported by the commands that need them, so that `glance --help` answers at once.
"""

import io
import sys

import click

from pipeline.cli import benchmarks, checks, demo, hub, images, pairs, project, teachers, versions


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="glance-pipeline")
def main() -> None:
    """Slow-fast adapters for flow-matching text-to-image models."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a character that the terminal lacks is no failure


for command in (
    images.generate,
    demo.demo,
    teachers.preset,
    teachers.fetch,
    teachers.assemble,
    pairs.import_pair,
    pairs.rival,
    checks.check,
    pairs.export,
    pairs.evaluate,
    versions.register,
    versions.promote,
    versions.pull,
    hub.card,
    hub.push,
    project.doctor,
    project.clean,
    project.ablate,
    project.ablations,
    benchmarks.benchmark,
):
    main.add_command(command)
