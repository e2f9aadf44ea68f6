"""The commands of the graph: one module per stage of dvc.yaml, each run as `python -m stages.<name>`."""

import errno
import functools
import logging
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from pipeline import mends
from pipeline.params import Faults, Params, load

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PROMPTS = Path("prompts")  # the folder of prompt files that dvc.yaml lists

log = logging.getLogger(__name__)


def _interrupt(signum: int, frame: Any) -> None:
    """Leaves with 130, which DVC takes for a failure: an interrupted stage is never recorded."""
    click.echo("interrupted: nothing is recorded, the next `dvc repro` goes on from here", err=True)
    sys.exit(128 + signum)


if sys.argv[:1] == ["-m"]:  # this package is being run; set here so that Ctrl-C during the slow imports leaves alike
    signal.signal(signal.SIGINT, _interrupt)


def stage_command(name: str, read: Callable[[], Params] = load) -> Callable[[Callable[[Params], None]], click.Command]:
    """Makes a stage's command from a function of the parameters.

    The command reads params.yaml of the working directory, sets the number of threads, and says what is wrong in one
    sentence, or of several faults in one each: ValueError, OSError and memory that runs out give exit code 1, Ctrl-C
    gives 130.

    Args:
        name: The stage, as in dvc.yaml; it opens every message.
        read: Reads and checks params.yaml.
    """

    def decorate(function: Callable[[Params], None]) -> click.Command:
        @click.command(name, help=function.__doc__)
        @click.option("--traceback", is_flag=True, help="Show where an error comes from.")
        @functools.wraps(function)
        def command(traceback: bool) -> None:
            logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
            try:
                params = read()
                set_threads(params.runtime.threads)
                _warn_of_unwatched_prompts(params)
                function(params)
            except (ValueError, OSError, RuntimeError, MemoryError) as error:
                if mends.out_of_memory(error):
                    work = mends.STAGES.get(name)
                    changes = mends.mends(params, work, mends.on_gpu(error)) if work else []
                    said = [mends.sentence(error, changes)]
                elif isinstance(error, RuntimeError):
                    raise
                else:
                    said = sentences(error)
                if traceback:
                    raise
                raise click.ClickException("\nError: ".join(f"{name}: {one}" for one in said)) from error

        return command

    return decorate


def sentences(error: Exception) -> list[str]:
    """A line for each fault of params.yaml, or the one line of any other error."""
    return list(error.sentences) if isinstance(error, Faults) else [sentence(error)]


def sentence(error: Exception) -> str:
    """One line for a person: what went wrong and, for a full disk, what to do."""
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        where = f" at {error.filename}" if error.filename else ""
        return f"no space left to write{where} ({error.strerror}); free some and run `dvc repro` again"
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    return " ".join(str(error).split())


def progress(iterable: Iterable | None = None, *, total: int | None = None, what: str, unit: str) -> tqdm:
    """A progress bar that says what is being done; in a log file it prints a line every ten seconds at most."""
    every = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(iterable, total=total, desc=what, unit=unit, mininterval=every, maxinterval=every, dynamic_ncols=True)


def _warn_of_unwatched_prompts(params: Params) -> None:
    for section, file in (
        ("trajectories", params.trajectories.prompts_file),
        ("evaluation", params.evaluation.prompts_file),
    ):
        if file is not None and not Path(file).resolve().is_relative_to(PROMPTS.resolve()):
            log.warning("%s.prompts_file: DVC sees changes of files in %s/ only, not of %s", section, PROMPTS, file)


def set_threads(threads: int) -> None:
    """Sets the CPU threads of torch; 0 leaves its default."""
    if threads:
        import torch  # costs a second, and only some stages need it

        torch.set_num_threads(threads)
