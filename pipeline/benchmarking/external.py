"""Runs an official scorer in its own environment: writes its layout, runs its commands, checks its results.

The layout, the script and the results of a scorer lie in one folder. So the script can also be run by hand, here or on
another machine that has the folder. A successful script leaves the file `finished` beside its results.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import artifacts, leftovers
from pipeline.benchmarking import manifest, values
from pipeline.benchmarking.manifest import Manifest
from pipeline.benchmarking.settings import Environment, Settings
from pipeline.benchmarking.values import Identity
from pipeline.evaluation.benchmarks.official import Call, External, Item, OfficialBenchmark

IMAGES, OUT, SCRIPT, LOG, LAID, FINISHED = "images", "out", "run.sh", "log.txt", "laid.json", "finished"
TAIL = 400  # characters of a failed scorer's output in the error


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A scorer that nobody has run yet.

    Attributes:
        scorer: Name of the scorer.
        arms: The arms with images to score.
        script: The script that runs the scorer.
        missing: The settings that are missing in benchmarks/params.yaml.
    """

    scorer: str
    arms: tuple[str, ...]
    script: Path
    missing: tuple[str, ...]


def score(benchmark: OfficialBenchmark, arms: Sequence[str], settings: Settings) -> list[Waiting]:
    """Runs the external scorers that are set up, each on the arms without its values, and reads the results.

    Args:
        benchmark: The benchmark.
        arms: The arms, all of which have images.
        settings: Where the environments are.

    Returns:
        The waiting scorers, which are not set up and whose script nobody ran by hand.

    Raises:
        ValueError: An image is damaged, a scorer failed, or its results are incomplete or unreadable.
    """
    waiting = []
    for scorer in benchmark.external:
        environment = settings.external.get(scorer.name, Environment())
        manifests = [manifest.load(benchmark.name, arm) for arm in arms]
        todo = [found for found in manifests if not _scored(found, scorer)]
        for group in [todo] if scorer.whole and todo else [[found] for found in todo]:
            waiting += _score(benchmark, scorer, group, environment)
    return waiting


def _score(
    benchmark: OfficialBenchmark, scorer: External, group: Sequence[Manifest], environment: Environment
) -> list[Waiting]:
    names = "+".join(found.arm for found in group)
    place = leftovers.folder("benchmarks") / benchmark.name / "external" / f"{scorer.name}-{names}"
    chosen = {found.arm: manifest.chosen(benchmark, found) for found in group}
    laid = {"version": scorer.version, "images": {found.arm: found.digest for found in group}}
    if not (place / LAID).is_file() or artifacts.read_json(place / LAID) != laid:
        _lay(scorer, group, chosen, place, laid)
    call, missing = _call(scorer, group, place, environment)
    script = place / SCRIPT
    _write_script(script, scorer, call)
    if not (place / FINISHED).is_file():
        if missing:
            return [Waiting(scorer=scorer.name, arms=tuple(chosen), script=script, missing=missing)]
        _run(scorer, place)
    for found in group:
        items = [item for _, item in chosen[found.arm]]
        try:
            said = scorer.parse(place / OUT, items, found.arm)
            values.complete(benchmark, scorer.name, items, said, f"what {scorer.name} wrote in {place / OUT}")
        except (ValueError, OSError):
            (place / FINISHED).unlink()  # the next run scores again
            raise
        values.write(found, _identity(scorer), said)
    return []


def _lay(
    scorer: External,
    group: Sequence[Manifest],
    chosen: Mapping[str, Sequence[tuple[int, Item]]],
    place: Path,
    laid: Mapping,
) -> None:
    """Writes the official layout, whole or not at all."""
    with artifacts.atomic_dir(place) as partial:
        sources = {}
        for found in group:
            manifest.verified(found, [index for index, _ in chosen[found.arm]])
            indices = {item.id: index for index, item in chosen[found.arm]}
            sources[found.arm] = lambda item, number, found=found, indices=indices: found.path(indices[item.id], number)
        items = [item for _, item in next(iter(chosen.values()))]
        (partial / IMAGES).mkdir()
        (partial / OUT).mkdir()
        scorer.layout(partial / IMAGES, items, sources, group[0].seeds)
        artifacts.write_json(partial / LAID, dict(laid))


def _call(
    scorer: External, group: Sequence[Manifest], place: Path, environment: Environment
) -> tuple[Call, tuple[str, ...]]:
    """The arguments of the commands, and the missing settings; a shell variable stands in for each of them."""
    options = {name: environment.options.get(name, f"${name.upper()}") for name in scorer.needs}
    unset = [key for key in ("python", "checkout") if getattr(environment, key) is None]
    missing = [f"external.{scorer.name}.{key}" for key in unset]
    missing += [f"external.{scorer.name}.options.{key}" for key in scorer.needs if key not in environment.options]
    call = Call(
        python=environment.python or "$PYTHON",
        checkout=environment.checkout.resolve() if environment.checkout else Path("$CHECKOUT"),
        images=(place / IMAGES).resolve(),
        out=(place / OUT).resolve(),
        arms=tuple(found.arm for found in group),
        height=group[0].height,
        width=group[0].width,
        options={**environment.options, **options},
    )
    return call, tuple(missing)


def _write_script(script: Path, scorer: External, call: Call) -> None:
    """Writes the official commands as a shell script that stops at the first failure."""
    lines = ["#!/bin/sh", f"# {scorer.name} at {scorer.version}, on the images of {', '.join(call.arms)}", "set -e"]
    for variable, what in {
        "$PYTHON": "the Python of the scorer's environment",
        "$CHECKOUT": "the official repository",
        **{f"${name.upper()}": what for name, what in scorer.needs.items()},
    }.items():
        if variable in (call.python, str(call.checkout), *call.options.values()):
            lines.append(f': "${{{variable[1:]}:?{what}}}"')
    lines += [f"rm -rf {shlex.quote(str(call.out))}", f"mkdir {shlex.quote(str(call.out))}"]
    lines.append(f"cd {_quoted(str(call.checkout))}")
    lines += [" ".join(_quoted(word) for word in command) for command in scorer.commands(call)]
    lines.append(f"touch {shlex.quote(str(script.resolve().with_name(FINISHED)))}")
    with artifacts.atomic_file(script) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
        partial.chmod(0o755)


def _quoted(word: str) -> str:
    """A word of a command, quoted for the shell except for a variable at its start."""
    return f'"{word}"' if word.startswith("$") else shlex.quote(word)


def _run(scorer: External, place: Path) -> None:
    """Runs the script with its output in a file; a failure leaves no results."""
    log = place / LOG
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            ["sh", str((place / SCRIPT).resolve())],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": ""},
            start_new_session=True,
        )
        try:
            code = process.wait()
        except BaseException:
            _stop(process)
            shutil.rmtree(place / OUT, ignore_errors=True)
            raise
    if code:
        shutil.rmtree(place / OUT, ignore_errors=True)
        words = " ".join(log.read_text(encoding="utf-8", errors="replace").split())[-TAIL:]
        raise ValueError(f"{scorer.name} ended with exit code {code}; its output is in {log}, and ends with: {words}")


def _stop(process: subprocess.Popen) -> None:
    """Ends a scorer and all of its child processes."""
    os.killpg(process.pid, 15)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()


def _identity(scorer: External) -> Identity:
    return Identity(scorer=scorer.name, version=scorer.version, weights={}, packages={})


def _scored(found: Manifest, scorer: External) -> bool:
    try:
        return values.read(found, scorer.name)[0] == _identity(scorer)
    except ValueError:
        return False
