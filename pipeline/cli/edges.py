"""Code that all commands share: errors as one sentence, a clean stop, the project's root, and bundles by name."""

import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import click
from tqdm import tqdm

from pipeline import artifacts, out_of_memory
from pipeline.console import sentence, sentences

ANYWHERE = (
    "generate",
    "check",
    "demo",
    "assemble",
    "pull",
    "clean",
    "doctor",
)  # need no valid params.yaml; the doctor checks it
OF_ROOT = ("params.yaml", "dvc.yaml")  # the files that show a project's root


def one_sentence(function: Callable[..., None]) -> Callable[..., None]:
    """Turns an error into one sentence (or one for each fault of params.yaml) and exit code 1.

    Ctrl-C gives exit code 130, SIGTERM 143. In another checkout only the commands of ANYWHERE run, since a checkout's
    params.yaml is meant for its own code, and its results are registered with its own revision.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            if function.__name__ not in ANYWHERE and (found := artifacts.other_checkout()):
                raise ValueError(f"{found}: run `python -m pipeline.cli` here instead of `glance`")
            with stoppable():
                function(*args, **kwargs)
        except (ValueError, OSError) as error:
            said = "\nError: ".join(sentences(error, "the command"))
            raise click.ClickException(noted(said, error)) from error
        except (RuntimeError, MemoryError) as error:
            if out_of_memory.out_of_memory(error):
                said = out_of_memory.sentence(error, out_of_memory.generating(kwargs, out_of_memory.on_gpu(error)))
            elif kwargs.get("compiled") and type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
                said = f"--compile needs a C++ compiler, and on a GPU Triton: {sentence(error)}"
            else:
                raise
            raise click.ClickException(noted(said, error)) from error
        except KeyboardInterrupt as stop:
            click.echo(noted("interrupted", stop), err=True)
            sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))

    return wrapped


@contextmanager
def stoppable() -> Iterator[None]:
    """Lets the first SIGTERM end a command as Ctrl-C does, so that no half-written file stays."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def noted(said: str, error: BaseException) -> str:
    return artifacts.legible("; ".join([said, *getattr(error, "__notes__", [])]))


def show(path: str | Path) -> None:
    """Prints a path with its bytes on the disk, whatever the locale, and above a progress bar."""
    terminal = sys.stdout.isatty() and sys.stderr.isatty()
    with tqdm.external_write_mode() if terminal else nullcontext():
        click.echo(os.fsencode(path))


def in_root(function: Callable[..., None]) -> Callable[..., None]:
    """Makes a command that reads params.yaml, artifacts/ or the registry refuse to run below the project's root."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        refuse_below_root()
        function(*args, **kwargs)

    return wrapped


def refuse_below_root() -> None:
    here = Path.cwd()
    roots = [folder for folder in (here, *here.parents) if all((folder / name).is_file() for name in OF_ROOT)]
    if roots and roots[0] != here:
        raise ValueError(f"{here} is a folder below the project's root: run this in {roots[0]}")


def name_of(bundle: str) -> str:
    """A name for files of a bundle: the name of its folder, or the version's reference as a file name."""
    return (
        re.sub(r"[/@]", "-", bundle.removeprefix("models:/"))
        if bundle.startswith("models:")
        else Path(bundle).resolve().name
    )


MARKS = {"bundle": ("glance.json", "adapter_config.json"), "base model": ("model_index.json",)}
"""The folders whose files must stay as they are, since digests identify them, and the files that show such a folder."""


def refuse_inside(key: str, out: Path) -> None:
    """Raises ValueError, which names `key`, if `out` is a bundle or a base model, or lies in one."""
    place = out.resolve()
    for above in (place, *place.parents):
        for kind, names in MARKS.items():
            if all((above / name).is_file() for name in names):
                raise ValueError(f"{key} must lie outside of the {kind} {above}, got {out}")


def bundle_folder(bundle: str, file: bool = False) -> Path:
    """The bundle's folder; a version of the registry is first pulled into a cache, under its digest.

    Args:
        bundle: A folder, or a version.
        file: Whether a file will do as well.

    Raises:
        ValueError: It is a file and has to be a folder, or there is no such version.
    """
    if not file and Path(bundle).is_file():
        raise ValueError(f"{bundle} is a file, and a bundle is a folder: `glance import` makes one from it")
    if bundle.startswith("models:") or not Path(bundle).exists():
        refuse_below_root()
    if not bundle.startswith("models:"):
        return Path(bundle)

    from pipeline.registry import pulling

    return pulling.pull(bundle)
