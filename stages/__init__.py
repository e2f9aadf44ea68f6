"""The commands of the graph: one module per stage of dvc.yaml, each run as `python -m stages.<name>`."""

import functools
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline import artifacts, out_of_memory
from pipeline.console import sentences, set_threads
from pipeline.params import Params, load

PROMPTS = Path("prompts")  # the folder of prompt files that dvc.yaml lists

log = logging.getLogger(__name__)


def _interrupt(signum: int, frame: Any) -> None:
    """Exits with code 130, which DVC takes for a failure, so that an interrupted stage is never recorded."""
    click.echo("interrupted: nothing is recorded, the next `dvc repro` goes on from here", err=True)
    sys.exit(128 + signum)


if sys.argv[:1] == [
    "-m"
]:  # a stage is running; set before the slow imports, so that Ctrl-C during them leaves in the same way
    signal.signal(signal.SIGINT, _interrupt)


def stage_command(name: str, read: Callable[[], Params] = load) -> Callable[[Callable[[Params], None]], click.Command]:
    """Makes a stage's command from a function of the parameters.

    The command refuses to run the code of another checkout, and reads params.yaml of the working directory. It sets the
    number of threads and warns of files that DVC does not watch. It reports each fault in one sentence: ValueError,
    OSError and lack of memory give exit code 1, Ctrl-C gives 130.

    Args:
        name: Name of the stage, as in dvc.yaml; every message starts with it.
        read: Reads and checks params.yaml.
    """

    def decorate(function: Callable[[Params], None]) -> click.Command:
        @click.command(name, help=function.__doc__)
        @click.option("--traceback", is_flag=True, help="Show where an error comes from.")
        @functools.wraps(function)
        def command(traceback: bool) -> None:
            logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
            try:
                _check_code()
                params = read()
                set_threads(params.runtime.threads)
                _warn_of_unwatched_prompts(params)
                _warn_of_linked_folders(params)
                function(params)
            except (ValueError, OSError, RuntimeError, MemoryError) as error:
                if out_of_memory.out_of_memory(error):
                    work = out_of_memory.STAGES.get(name)
                    changes = out_of_memory.advice(params, work, out_of_memory.on_gpu(error)) if work else []
                    said = [out_of_memory.sentence(error, changes)]
                elif isinstance(error, RuntimeError):
                    raise
                else:
                    said = sentences(error)
                if traceback:
                    raise
                raise click.ClickException("\nError: ".join(f"{name}: {one}" for one in said)) from error

        return command

    return decorate


def _check_code() -> None:
    """Refuses to run the code of another checkout, whose results DVC would record for this checkout's code.

    `python -m` normally puts the working directory first on Python's path. If this is turned off, Python finds the
    installed checkout.

    Raises:
        ValueError: The working directory is another checkout than that of this code.
    """
    found = artifacts.other_checkout()
    if found:
        raise ValueError(f"{found}: unset PYTHONSAFEPATH, and run Python without -P and -I")


def _warn_of_linked_folders(params: Params) -> None:
    folder = Path(params.teacher.path)
    linked = sorted(p.name for p in folder.iterdir() if p.is_symlink() and p.is_dir()) if folder.is_dir() else []
    if linked:
        log.warning("teacher.path: DVC sees no change in the linked folders of %s: %s", folder, ", ".join(linked))


def _warn_of_unwatched_prompts(params: Params) -> None:
    for section, file in (
        ("trajectories", params.trajectories.prompts_file),
        ("evaluation", params.evaluation.prompts_file),
    ):
        if file is not None and not artifacts.named(file).resolve().is_relative_to(PROMPTS.resolve()):
            log.warning("%s.prompts_file: DVC sees changes of files in %s/ only, not of %s", section, PROMPTS, file)
