"""Compares a run with an earlier one: recording, adapters and bundle to the byte, every figure to the last digit.

A change of structure must pass this comparison. Keep a copy of the project and its artifacts from before the change,
run the graph after the change, and compare with `python -m measurements.same_bytes ../before`. Only runs on one machine
have equal bytes.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from measurements.gpu import ROOT
from pipeline import artifacts

FOLDERS = (
    artifacts.TRAJECTORIES,
    artifacts.PARTITION.parent,
    artifacts.TRAIN_SLOW,
    artifacts.TRAIN_FAST,
    artifacts.TRAIN_CONTROLS,
    artifacts.BUNDLE,
)
CLOCKED = ("latency", "loop", "speedup")  # prefixes of timed figures, which earlier runs kept in metrics.json


def differences(before: Path, after: Path) -> Iterator[str]:
    """The differences between the artifacts of two projects, a line each."""
    for folder in FOLDERS:
        names = sorted({*_files(before / folder), *_files(after / folder)})
        for name in names:
            digests = [_digest(root / folder / name) for root in (before, after)]
            if digests[0] != digests[1]:
                missing = [str(root) for root, digest in zip((before, after), digests, strict=True) if digest is None]
                yield f"{folder / name}: {'missing from ' + missing[0] if missing else 'other bytes'}"
    file = artifacts.EVALUATION / "metrics.json"
    arms, now = (artifacts.read_json(root / file)["arms"] for root in (before, after))
    for arm in sorted({*arms, *now}):
        figures = [{k: v for k, v in rows.get(arm, {}).items() if not k.startswith(CLOCKED)} for rows in (arms, now)]
        for key in sorted({*figures[0], *figures[1]}):
            was, is_now = (row.get(key) for row in figures)
            if was != is_now:
                yield f"{file}: {arm}.{key} was {was}, is {is_now}"


def _files(folder: Path) -> list[str]:
    return artifacts.files(folder) if folder.is_dir() else []


def _digest(file: Path) -> str | None:
    return artifacts.file_digest(file) if file.is_file() else None


@click.command()
@click.argument("before", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--after", default=ROOT, show_default=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(before: Path, after: Path) -> None:
    """Compare the artifacts of the project in BEFORE with those of this one; exit code 1 where they differ."""
    found = list(differences(before, after))
    for line in found:
        click.echo(line)
    click.echo(f"{len(found)} differences")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
