"""What a person at the terminal sees: a progress bar, and errors as one sentence each."""

import errno
import sys
from collections.abc import Iterable

from tqdm import tqdm

from pipeline import artifacts
from pipeline.faults import Faults

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sentences(error: Exception, command: str = "`dvc repro`") -> list[str]:
    """A line for each fault of params.yaml, or the one line of any other error; `command` as for `sentence`."""
    return list(error.sentences) if isinstance(error, Faults) else [sentence(error, command)]


def sentence(error: Exception, command: str = "`dvc repro`") -> str:
    """One line for a person: what went wrong and, for a full disk, which command to run again."""
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        where = f" at {error.filename}" if error.filename else ""
        said = f"no space left to write{where} ({error.strerror}); free some and run {command} again"
    elif isinstance(error, OSError) and error.strerror:
        said = f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    else:
        said = " ".join(str(error).split())
    return artifacts.legible(said)


def progress(iterable: Iterable | None = None, *, total: int | None = None, what: str, unit: str) -> tqdm:
    """A progress bar that says what is being done; in a log file it prints a line every ten seconds at most."""
    every = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(iterable, total=total, desc=what, unit=unit, mininterval=every, maxinterval=every, dynamic_ncols=True)


def set_threads(threads: int) -> None:
    """Sets the CPU threads of torch; 0 leaves its default."""
    if threads:
        import torch  # the import takes a second, and only some stages need it

        torch.set_num_threads(threads)
