"""Publishes the run to MLflow and registers the bundle; it has no outputs of its own."""

import click

from pipeline.params import Params
from pipeline.registry import references, registering
from stages import stage_command


@stage_command("register")
def main(params: Params) -> None:
    """Publishes the stages' results as one MLflow run, and registers the bundle as `candidate`."""
    done = registering.register(params)
    how = "registered" if done.created else "is registered already, these are the same bytes"
    click.echo(f"{done.version} {how}: models:/{done.version.name}@{references.CANDIDATE} (run {done.run_id})")


if __name__ == "__main__":
    main()
