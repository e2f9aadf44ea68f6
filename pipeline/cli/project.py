"""Commands for the project itself: doctor, clean, ablate, ablations."""

from pathlib import Path

import click

from pipeline import artifacts
from pipeline.cli.edges import in_root, one_sentence


@click.command()
@click.option("--fix", is_flag=True, help="First remove a broken .dvc/tmp/rwlock that a killed DVC left.")
@one_sentence
@in_root
def doctor(fix: bool) -> None:
    """Check git, DVC, packages, the teacher and the registry; say what is wrong and how to fix it."""
    from pipeline import diagnosis, rwlock

    if fix and (found := rwlock.repair(Path.cwd())):
        click.echo(f"removed {rwlock.TMP / 'rwlock'}: {found}")
    wrong = 0
    for name, finding in diagnosis.run():
        wrong += not finding.ok
        click.echo(f"{'ok  ' if finding.ok else 'FAIL'} {name}: {finding.text}")
        if finding.fix:
            click.echo(f"     fix: {finding.fix}")
    if wrong:
        raise click.ClickException(f"{wrong} of {len(diagnosis.CHECKS)} checks failed")


@click.command()
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Also remove what stopped stages, pulls by name and stopped downloads left.",
)
@one_sentence
@in_root
def clean(everything: bool) -> None:
    """Empty .glance/cache: the next evaluation makes the images of the bare model again.

    --all also empties four other folders. Without .glance/checkpoints, stopped stages start over, which can take
    hours. Without .glance/bundles, versions named as models:/... are pulled again. Without .glance/downloads,
    stopped downloads start over. Without .glance/benchmarks, the images of the official benchmarks are generated again,
    which can take hours. The registry stays.
    """
    from pipeline import leftovers, rwlock

    if everything and (busy := rwlock.running(artifacts.dvc_root())):
        raise ValueError(f"--all would delete the checkpoints of a running DVC ({busy}): wait for its end or stop it")
    for name in leftovers.FOLDERS if everything else ("cache",):
        freed = leftovers.clean(name)
        click.echo(f"{freed.folder}: {freed.files} files, {freed.bytes / leftovers.GB:.3f} GB freed")


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="How many runs at once.")
@click.option("--force", is_flag=True, help="Run every stage again, also of finished experiments.")
@click.option("--dry-run", is_flag=True, help="Only print the commands of DVC.")
@one_sentence
@in_root
def ablate(names: tuple[str, ...], jobs: int, force: bool, dry_run: bool) -> None:
    """Run the missing experiments of experiments/NAME.yaml, and renew docs/ablations.md."""
    from pipeline import ablations

    failed = ablations.ablate(names, jobs, force, dry_run, click.echo)
    if failed:
        raise click.ClickException(f"{len(failed)} runs failed: {', '.join(failed)}")


@click.command()
@one_sentence
@in_root
def ablations() -> None:
    """Renew docs/ablations.md from the experiments that are here and the tables in experiments/results/."""
    from pipeline import ablations

    ablations.renew(click.echo)
