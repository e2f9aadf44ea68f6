"""The DVC experiments behind the grids: queues them, waits for them, reads their results.

DVC's queue runs the experiments. Its workers take no lock of the repository, so several can run at once (two `dvc exp
run --temp` at the same time fail with "Unable to acquire lock"). Finished experiments are read from git, which costs
nothing. Only failed or lost ones are looked up with `dvc queue status`, which takes a second of a core.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from ruamel.yaml import YAML

from pipeline.ablations.grid import Grid, Run, agree
from pipeline.ablations.results import Result
from pipeline.artifacts import EVALUATION, LATENCY, digest_of
from pipeline.evaluation import outcome
from pipeline.registry.provenance import flatten
from pipeline.styles import Lora

STAGE = "report"  # last stage of a run: `register` would move `candidate` to an ablation
METRICS = (EVALUATION / "metrics.json").as_posix()
POLL_S = 2.0
STATUS_S = 20.0
PATIENCE = 3  # a run counts as failed after so many looks at the queue without the run or without workers
BRIEF = 12  # hex digits of a commit in a table

Echo = Callable[[str], None]


@dataclass(frozen=True)
class Experiment:
    """A finished DVC experiment."""

    name: str
    revision: str
    baseline: str
    subject: str
    committed: int
    """Seconds since 1970."""

    @property
    def jobs(self) -> int | None:
        """How many runs went at once; None if `glance ablate` did not start the experiment."""
        found = re.search(r"^glance ablate, jobs (\d+)$", self.subject)
        return int(found[1]) if found else None

    @cached_property
    def params(self) -> dict[str, Any]:
        """The parameters of its report, "section.key" -> value; {} without a report.

        Read from dvc.lock, not params.yaml: a run that stopped before the report carries the metrics of another run.
        """
        text = _git("show", f"{self.revision}:dvc.lock", check=False)
        stages = _block(text, "stages")  # parsing the whole file would take YAML a second
        earlier = not _block(stages, "generate_images")  # of a time when one stage did the work up to `report`
        recorded = _block(_block(stages, "evaluate" if earlier else STAGE), "params")
        return flatten(YAML(typ="safe", pure=True).load(recorded)["params.yaml"]) if recorded else {}

    def metrics(self) -> dict[str, Any]:
        """Scores and times of the experiment."""
        metrics = json.loads(_git("show", f"{self.revision}:{METRICS}"))
        latency = _git("show", f"{self.revision}:{LATENCY.as_posix()}", check=False)
        return outcome.together(metrics, json.loads(latency)) if latency else metrics  # an old file holds its times


def find() -> dict[str, list[Experiment]]:
    """The finished experiments of this repository by name, the newest first."""
    form = "%(refname)%09%(objectname)%09%(committerdate:unix)%09%(contents:subject)"
    found: dict[str, list[Experiment]] = {}
    for line in _git("for-each-ref", f"--format={form}", "refs/exps").splitlines():
        ref, revision, committed, subject = line.split("\t", 3)
        place = re.fullmatch(r"refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/(.+)", ref)
        if place:  # other references are DVC's own notes
            experiment = Experiment(place[3], revision, place[1] + place[2], subject, int(committed))
            found.setdefault(experiment.name, []).append(experiment)
    return {name: sorted(those, key=lambda one: -one.committed) for name, those in found.items()}


def matching(run: Run, found: Mapping[str, Sequence[Experiment]]) -> Experiment | None:
    """The newest experiment with the name and the parameters of a run; None if there is none."""
    fits = (one for one in found.get(run.name, ()) if one.params and agree(one.params, run.params))
    return next(fits, None)


def collect(grid: Grid, old: Iterable[Result]) -> list[Result]:
    """The results of a grid from its experiments; a run without an experiment here keeps its old rows.

    Args:
        grid: The question.
        old: The rows of the grid's table. Rows of variants, seeds or values that the grid no longer has are left out.
    """
    found = find()
    kept: dict[tuple[str, str], list[Result]] = {(row.experiment, row.changes): [] for row in old}
    for row in old:
        kept[row.experiment, row.changes].append(row)
    results: list[Result] = []
    for run in grid.runs:
        experiment = matching(run, found)
        results += _results(grid, run, experiment) if experiment else kept.get((run.name, " ".join(run.changes)), [])
    order = list(grid.variants)
    return sorted(results, key=lambda row: order.index(row.variant))


def _results(grid: Grid, run: Run, experiment: Experiment) -> list[Result]:
    metrics = experiment.metrics()
    shared = {
        "variant": run.variant,
        "seed": run.seed,
        "experiment": run.name,
        "changes": " ".join(run.changes),
        "base": digest_of(grid.base(experiment.params))[:BRIEF],
        "baseline": experiment.baseline[:BRIEF],
        "revision": experiment.revision[:BRIEF],
        "jobs": experiment.jobs,
        "prompts": metrics["prompts"],
    }
    return [Result(**shared, arm=arm, metrics=row) for arm, row in metrics["arms"].items()]


def queue_command(run: Run, jobs: int, threads: int, force: bool) -> list[str]:
    """The command that queues a run.

    Args:
        run: What to run.
        jobs: How many runs go at once; the experiment records the number, as latency is meaningful only for 1.
        threads: Threads of each run; 0 leaves the value of params.yaml.
        force: Run each stage again, even if DVC has cached it.
    """
    changes = [*run.changes, *([f"runtime.threads={threads}"] if threads else [])]
    options = [part for change in changes for part in ("--set-param", change)]
    message = f"glance ablate, jobs {jobs}"
    forced = ["--force"] if force else []
    ignored = ["--copy-paths", Lora.folder.as_posix()] if run.params[Lora.key] else []  # git does not bring the LoRAs
    start = ["dvc", "exp", "run", "--queue", "--name", run.name, "--message", message]
    return [*start, *forced, *ignored, *options, STAGE]


def execute(runs: Sequence[Run], jobs: int, force: bool, dry: bool, echo: Echo) -> list[str]:
    """Runs the missing experiments, `jobs` at once, and reports the progress; returns the runs that failed.

    Args:
        runs: The runs of one or several grids.
        jobs: How many runs at once; several share the cores.
        force: Run finished experiments again.
        dry: Only print the commands that would run.
        echo: Takes each line of the output.

    Raises:
        ValueError: This is no repository of git and DVC, or DVC refuses.
    """
    found, head = find(), _git("rev-parse", "HEAD").strip()
    threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else 0
    wanted, replaced = [], []
    for run in runs:
        there = matching(run, found)
        if there and not force:
            echo(f"{run.name} is there, made of {there.baseline[:BRIEF]}")
            continue
        wanted.append(run)
        if not force and any(one.baseline == head for one in found.get(run.name, ())):
            replaced.append(run.name)  # an experiment of this commit with other parameters
    if not wanted:
        return []
    removal = [["git", "update-ref", "-d", f"refs/exps/{head[:2]}/{head[2:]}/{name}"] for name in replaced]
    queued = {run.name: queue_command(run, jobs, threads, force) for run in wanted}
    start = ["dvc", "queue", "start", "--jobs", str(jobs)]
    if dry:
        for command in (*removal, *queued.values(), start):
            echo(shlex.join(command))
        return []
    before = _revisions(head)
    under_way = _tidy(queued)
    for command in removal:
        _call(*command)
    for i, (name, command) in enumerate(queued.items(), start=1):
        if name not in under_way:
            _call(*command)
            echo(f"[{i}/{len(queued)}] queued {name}")
    _call(*start)
    try:
        return _follow(list(queued), before, head, start, echo)
    except KeyboardInterrupt:
        echo("the queue continues: `dvc queue stop --kill` ends it, the same command waits for it again")
        raise


def status(text: str) -> tuple[dict[str, str], int]:
    """Reads the output of `dvc queue status`: the state of each task by name, and the number of workers.

    If a name appears twice, a task that waits or runs hides a task that is done.
    """
    states: dict[str, str] = {}
    for line in text.splitlines():
        row = re.match(r"[0-9a-f]{7,}\s+(\S+)\s.*\b(Queued|Running|Success|Failed)\s*$", line)
        if row and states.get(row[1]) not in ("Queued", "Running"):
            states[row[1]] = row[2]
    workers = re.search(r"(\d+) active, (\d+) idle", text)
    return states, int(workers[1]) + int(workers[2]) if workers else 0


def _tidy(names: Iterable[str]) -> set[str]:
    """Removes done and lost tasks of these names from the queue, so that names are unique; returns the other names."""
    states, workers = status(_dvc("queue", "status"))
    mine = {name: states[name] for name in names if name in states}
    for name, state in mine.items():
        if state == "Running" and not workers:  # its worker was killed, which DVC does not notice
            _dvc("queue", "kill", name, check=False)
            mine[name] = "Failed"
    done = [name for name, state in mine.items() if state in ("Success", "Failed")]
    if done:
        _dvc("queue", "remove", *done)
    return mine.keys() - set(done)


def _follow(names: Sequence[str], before: Mapping[str, str], head: str, start: Sequence[str], echo: Echo) -> list[str]:
    """Waits until every task is done, with a line for each; returns the names of failed tasks."""
    began = looked = time.monotonic()
    pending, failed, missed = list(names), [], dict.fromkeys(names, 0)

    def done(name: str, how: str) -> None:
        pending.remove(name)
        minutes = (time.monotonic() - began) / 60
        echo(f"[{len(names) - len(pending)}/{len(names)}] {name} {how} after {minutes:.1f} min")

    while pending:
        time.sleep(POLL_S)
        after = _revisions(head)
        for name in [name for name in pending if after.get(name) != before.get(name)]:
            done(name, "is done")
        if not pending or time.monotonic() - looked < STATUS_S:
            continue
        states, workers = status(_dvc("queue", "status"))
        looked, after = time.monotonic(), _revisions(head)
        for name in list(pending):
            state = states.get(name)
            missed[name] = 0 if workers and state else missed[name] + 1  # a task that is just starting is in no list
            if after.get(name) != before.get(name) or state == "Success":  # a forced run can give the same bytes
                done(name, "is done")
            elif state == "Failed" or missed[name] >= PATIENCE:
                failed.append(name)
                done(name, f"FAILED (`dvc queue logs {name}` says why)")
        if not workers and any(states.get(name) == "Queued" for name in pending):
            _call(*start)
    return failed


def _revisions(head: str) -> dict[str, str]:
    """The finished experiments of the commit that is checked out: name -> revision."""
    found = _git("for-each-ref", "--format=%(refname:lstrip=4)%09%(objectname)", f"refs/exps/{head[:2]}/{head[2:]}")
    return dict(line.split("\t") for line in found.splitlines())


def _block(text: str, key: str) -> str:
    """The block under a key of a YAML file that DVC wrote, without its indentation; "" without the key."""
    found = re.search(rf"^{key}:\n((?:(?:[ ]|- ).*\n)*)", text, flags=re.MULTILINE)
    lines = found[1].splitlines(keepends=True) if found else []
    return "".join(line.removeprefix("  ") for line in lines)


def _git(*arguments: str, check: bool = True) -> str:
    return _call("git", *arguments, check=check)


def _dvc(*arguments: str, check: bool = True) -> str:
    return _call("dvc", *arguments, check=check)


def _call(*command: str, check: bool = True) -> str:
    """The output of a command; if the command fails, the last line becomes the error.

    The output goes to files, not pipes: a queue worker that DVC leaves behind would hold a pipe open until the queue is
    empty.
    """
    here = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # this dvc, this python
    with TemporaryFile("w+", encoding="utf-8") as out, TemporaryFile("w+", encoding="utf-8", errors="replace") as err:
        try:
            code = subprocess.run(
                command, stdout=out, stderr=err, check=False, env={**os.environ, "PATH": here}
            ).returncode
        except FileNotFoundError as error:
            raise ValueError(f"{command[0]} is not installed: `glance doctor` says what is missing") from error
        for file in (out, err):
            file.seek(0)
        printed, complaints = out.read(), err.read()
    if check and code:
        said = (complaints.strip() or printed.strip() or f"exit code {code}").splitlines()
        reason = next((line for line in said if line.startswith(("ERROR", "fatal"))), said[-1])
        raise ValueError(f"`{shlex.join(command[:3])}` failed: {reason}")
    return printed if code == 0 else ""
