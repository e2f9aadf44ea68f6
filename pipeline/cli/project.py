"""Commands for the project itself: doctor, clean, ablate, ablations."""

from pathlib import Path

import click

from pipeline import artifacts
from pipeline.cli.edges import in_root, one_sentence


@click.command()
@click.option("--fix", is_flag=True, help="First remove what a DVC that was killed left unusable, .dvc/tmp/rwlock.")
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
@click.option("--all", "everything", is_flag=True, help="Also what stopped stages, pulls by name and downloads left.")
@one_sentence
@in_root
def clean(everything: bool) -> None:
    """Empty .glance/cache: images of the bare model, which the next evaluation makes anew.

    With --all also .glance/checkpoints: stages that were stopped begin anew, which can cost hours. And .glance/bundles:
    versions that a command named as models:/... are pulled anew. And .glance/downloads: downloads that were stopped
    begin anew. The registry stays.
    """
    from pipeline import leftovers, rwlock

    if everything and (busy := rwlock.running(artifacts.dvc_root())):
        raise ValueError(f"--all would take the checkpoints of what DVC runs ({busy}): wait for its end or stop it")
    for name in leftovers.FOLDERS if everything else ("cache",):
        freed = leftovers.clean(name)
        click.echo(f"{freed.folder}: {freed.files} files, {freed.bytes / leftovers.GB:.3f} GB freed")


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="How many runs go at once.")
@click.option("--force", is_flag=True, help="Run what is there too, every stage anew.")
@click.option("--dry-run", is_flag=True, help="Only print the commands of DVC.")
@one_sentence
@in_root
def ablate(names: tuple[str, ...], jobs: int, force: bool, dry_run: bool) -> None:
    """Run the experiments of experiments/NAME.yaml that are not there yet, and renew docs/ablations.md."""
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
