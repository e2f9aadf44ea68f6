"""Repairs DVC's record of readers and writers, `.dvc/tmp/rwlock`, which a killed DVC can leave unusable.

DVC rewrites this JSON file at the start and at the end of every stage. A DVC that is killed while writing leaves half a
file, and each later command fails with "JSON structure is corrupted". DVC itself removes the entries of dead processes,
but not where another program has got the process number since, as happens in containers. Then each later command fails
with "is busy". `python -m pipeline.rwlock` repairs both faults, and `make run` starts with this command.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click
import psutil

TMP = Path(".dvc") / "tmp"
LOCKS = ("lock", "rwlock.lock")  # of the repository, and of the record; DVC holds them for moments only
CLOCK_S = 2  # precision of a process's start time
BROKEN = "it was being written when DVC was killed, and every command of DVC fails until it is removed"


def fault(root: Path) -> str | None:
    """What is wrong with the record of a repository, in words; None where DVC can go on."""
    file = root / TMP / "rwlock"
    try:
        content, written = json.loads(file.read_bytes()), file.stat().st_mtime
        entries = list(_entries(content))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError, KeyError):
        return BROKEN
    for pid, command in entries:
        if _started(pid) > written + CLOCK_S:
            return f"it names a killed `{command}` by the process number {pid}, which another program has now"
    return None


def repair(root: Path) -> str | None:
    """Removes an unusable record, under the locks that DVC takes for the record.

    Returns:
        What was wrong, in words; None where nothing was.

    Raises:
        ValueError: DVC runs in the repository.
    """
    if fault(root) is None:
        return None
    with _alone(root):
        found = fault(root)  # again: until here another DVC may have been writing the record
        if found:
            (root / TMP / "rwlock").unlink()
        return found


def running(root: Path) -> str | None:
    """A DVC process that works in the repository, as "process <number>: <command>"; None where there is none."""
    for process in psutil.process_iter():
        try:
            command, folder = process.cmdline(), Path(process.cwd())
        except (psutil.Error, OSError):  # the process has ended, or is another user's
            continue
        names = [Path(word).name for word in command[:4]]
        program = names and (names[0] == "dvc" or names[0].startswith("python") and "dvc" in names[1:])
        if program and folder.is_relative_to(root.resolve()):
            return f"process {process.pid}: dvc {' '.join(command[names.index('dvc') + 1 :])}"
    return None


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Holds the locks of the repository and of the record, as DVC does; refuses a DVC between two stages as well."""
    from dvc.config import Config
    from dvc.lock import LockError, make_lock

    hardlink = Config(str(root / ".dvc"))["core"].get("hardlink_lock", False)
    locks = [make_lock(str(root / TMP / name), str(root / TMP), hardlink_lock=hardlink) for name in LOCKS]
    try:
        with locks[0], locks[1]:
            if (busy := running(root)) is None:
                yield
                return
    except LockError:
        busy = running(root) or "it holds its lock"
    raise ValueError(f"{root / TMP / 'rwlock'} is unusable while DVC runs here ({busy}): wait for its end or stop it")


def _entries(content: Mapping) -> Iterator[tuple[int, str]]:
    """(process number, command) of each reader and writer."""
    for info in [*content.get("write", {}).values(), *(i for infos in content.get("read", {}).values() for i in infos)]:
        yield int(info["pid"]), str(info["cmd"])


def _started(pid: int) -> float:
    """When a process began, in seconds since 1970; 0 where there is no such process."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


@click.command()
def main() -> None:
    """Remove DVC's record of readers and writers if a killed DVC left the record unusable."""
    try:
        found = repair(Path.cwd())
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if found:
        click.echo(f"removed {TMP / 'rwlock'}: {found}")


if __name__ == "__main__":
    main()
