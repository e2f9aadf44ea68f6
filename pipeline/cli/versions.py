"""Commands for the registry: register, promote, pull."""

from pathlib import Path

import click

from pipeline import artifacts
from pipeline.cli.edges import in_root, name_of, one_sentence, refuse_inside, show


@click.command()
@click.option("--bundle", default=artifacts.BUNDLE, show_default=True, type=click.Path(path_type=Path))
@click.option(
    "--evaluation",
    default=artifacts.EVALUATION,
    show_default=True,
    type=click.Path(path_type=Path),
    help="The folder of the bundle's evaluation, from `glance evaluate` or `dvc repro`.",
)
@one_sentence
@in_root
def register(bundle: Path, evaluation: Path) -> None:
    """Publish the last `dvc repro` and register its bundle as `candidate`; the same bytes make no second version.

    With --bundle another pair is registered, together with its own evaluation.
    """
    from pipeline import params
    from pipeline.registry import registering

    done = registering.register(params.load(), bundle, evaluation)
    click.echo(f"{done.version}{'' if done.created else ' has these bytes already'} (run {done.run_id})")


@click.command()
@click.argument("reference", required=False)
@click.option(
    "--require",
    multiple=True,
    metavar="BENCHMARK=SHARE",
    help="Also require a retention in an official benchmark, such as geneval=0.95.",
)
@click.option("--force", is_flag=True, help="Promote the version whatever its retention is.")
@one_sentence
@in_root
def promote(reference: str | None, require: tuple[str, ...], force: bool) -> None:
    """Make a version the `champion`.

    REFERENCE is models:/name@alias, models:/name/version or a version number; the default is the candidate. A version
    with a retention below register.min_retention of params.yaml is refused.
    """
    from pipeline import params
    from pipeline.registry import promoting, references

    version = promoting.promote(params.load(), reference, required=_required(require), force=force)
    retention = version.tags.get("retention")
    measured = "retention unmeasured" if retention is None else f"retention {100 * float(retention):.1f} %"
    click.echo(f"{version} is {references.CHAMPION} ({measured})")


@click.command()
@click.argument("reference")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The folder to make  [default: named after the reference, here]"
)
@one_sentence
@in_root
def pull(reference: str, out: Path | None) -> None:
    """Download REFERENCE, a version named models:/name@alias or models:/name/version, and check its bytes."""
    from pipeline.registry import pulling, references

    references.parse(reference)
    if out is not None:
        refuse_inside("--out", out)
    show(pulling.pull(reference, out or Path(name_of(reference))))


def _required(texts: tuple[str, ...]) -> dict[str, float]:
    """The least retention by benchmark, from texts such as geneval=0.95."""
    found = {}
    for text in texts:
        name, _, share = text.partition("=")
        try:
            found[name] = float(share)
        except ValueError:
            found[name] = float("nan")
        if not name or not 0 <= found[name] <= 2:
            raise ValueError(f"--require must be BENCHMARK=SHARE with a share from 0 to 2, got {text}")
    return found
