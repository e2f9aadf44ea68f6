"""What a `dvc repro` did, read back from git, dvc.lock and the files that its stages wrote."""

import csv
import math
import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import artifacts
from pipeline.artifacts import read_json
from pipeline.registry.runs import Metric

SHOWN = (".png", ".svg", ".html", ".csv", ".json")  # outputs of a stage that its run shows; tensors stay with DVC


@dataclass(frozen=True)
class StageRecord:
    """One stage of dvc.lock.

    params: "section.key" -> value, as the stage ran with them.
    digests: "dep.<path>" and "out.<path>" -> digest of DVC.
    outs: The files and folders that the stage wrote.
    """

    name: str
    command: str
    params: dict[str, object]
    digests: dict[str, str]
    outs: tuple[Path, ...]

    def files(self) -> dict[Path, str]:
        """Maps each existing picture, table and report of the outputs to its folder within the stage's outputs."""
        return shown(self.outs)

    def metrics(self) -> list[Metric]:
        """The numbers of metrics.json or latency.json and the histories of the CSV files among the outputs."""
        found = []
        for file in self.files():
            if file.name in ("metrics.json", "latency.json"):
                found += numbers(read_json(file))
            elif file.suffix == ".csv":
                found += history(file)
        return found


def shown(outs: Iterable[Path]) -> dict[Path, str]:
    """Maps pictures, tables and reports among files and folders to their folder relative to the output's parent."""
    every = {
        file: file.relative_to(out.parent).parent.as_posix()
        for out in outs
        for file in ([out / name for name in artifacts.files(out)] if out.is_dir() else [out])
    }
    return {file: folder for file, folder in every.items() if file.suffix in SHOWN and file.is_file()}


def stage_records(lock: str | Path = "dvc.lock") -> list[StageRecord]:
    """The stages that DVC has run, in the file's order.

    Raises:
        ValueError: The file is missing or is no lock file of DVC.
    """
    try:
        content = YAML(typ="safe", pure=True).load(Path(lock).read_text(encoding="utf-8"))
        return [_record(name, stage) for name, stage in content["stages"].items()]
    except FileNotFoundError as error:
        raise ValueError(f"{lock} is missing: run `dvc repro` first, it records what each stage did") from error
    except (YAMLError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{lock} is not a lock file of DVC: {' '.join(str(error).split())}") from error


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Nested dicts as one: {"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, object] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def numbers(content: Mapping[str, Any]) -> list[Metric]:
    """The finite numbers of nested dicts; other values, such as the PSNR of the teacher to itself, are left out."""
    return [
        Metric(key, float(value))
        for key, value in flatten(content).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    ]


def history(path: str | Path) -> list[Metric]:
    """The columns of a CSV file over its column `train_step`; a file without this column gives no metrics.

    A column of words (`arm`) goes before the metric's name: `single.loss`.
    """
    found = []
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if "train_step" not in (rows.fieldnames or ()):
            return []
        for row in rows:
            step = int(float(row.pop("train_step")))
            values = {column: _number(text) for column, text in row.items()}
            words = [row[column] for column, value in values.items() if value is None and row[column]]
            found += [
                Metric(".".join([*words, column]), value, step)
                for column, value in values.items()
                if value is not None and math.isfinite(value)
            ]
    return found


def git_revision() -> str | None:
    """The commit that is checked out here, with `-dirty` when tracked files differ from it; None without one."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
        return done.stdout.strip() or None
    except FileNotFoundError:  # no git on this machine
        return None


def dvc_experiment() -> str | None:
    """The name of the `dvc exp run` around this process; None in a plain `dvc repro`."""
    return os.environ.get("DVC_EXP_NAME") or None


def _record(name: str, stage: Mapping[str, Any]) -> StageRecord:
    entries = {kind: stage.get(f"{kind}s") or [] for kind in ("dep", "out")}
    digests = {
        f"{kind}.{entry['path']}": str(entry.get(entry.get("hash", "md5")) or entry.get("md5", ""))
        for kind, listed in entries.items()
        for entry in listed
    }
    params: dict[str, object] = {}
    for of_file in (stage.get("params") or {}).values():
        params |= flatten(of_file)
    command = stage.get("cmd", "")
    return StageRecord(
        name=name,
        command=command if isinstance(command, str) else " && ".join(command),
        params=params,
        digests=digests,
        outs=tuple(Path(entry["path"]) for entry in entries["out"]),
    )


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
