"""Records official benchmarks in MLflow: a child run of the pair's run for each, and tags of the pair's version."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.artifacts import read_json
from pipeline.params import Params
from pipeline.registry import provenance
from pipeline.registry.connection import Store, connect
from pipeline.registry.lock import locked
from pipeline.registry.verifying import DIGEST
from pipeline.registry.versions import Version

PRODUCT = "student"
FILES = ("table.csv", "report.html")


def record(params: Params, results: Path) -> list[str]:
    """Writes the results of `glance benchmark collect` into MLflow.

    The version is tagged with `<benchmark>.retention` (the retention in the first metric),
    `<benchmark>.<metric>.retention` for each metric, and `<benchmark>.prompts`.

    Args:
        params: `register.name` names the model and the experiment.
        results: The folder with metrics.json, table.csv and report.html.

    Returns:
        A line for each benchmark.

    Raises:
        ValueError: There are no results, or the pair that they measure is not registered.
        ConnectionError: The MLflow server is down or refuses.
    """
    file = results / "metrics.json"
    if not file.is_file():
        raise ValueError(f"{file} is missing: run `glance benchmark collect` first")
    found, store = read_json(file), connect()
    versions = {name: _version(store, params.register.name, name, content) for name, content in found.items()}
    lines = []
    with locked():
        experiment_id = store.experiments.ensure(params.register.name)
        store.runs.begin(experiment_id)
        for name, content in found.items():
            version = versions[name]
            with store.runs.started(experiment_id, f"benchmark {name}", parent=version.run_id) as run_id:
                tags = {"benchmark": name, DIGEST: content["bundle_digest"], "subset": content["subset"]}
                store.runs.log(run_id, metrics=provenance.numbers(content["arms"]), tags=tags)
                store.runs.log_files(run_id, {results / file: "." for file in FILES if (results / file).is_file()})
            store.versions.tag(version, tags_of(name, content))
            lines.append(f"{name}: {version} is tagged (run {run_id})")
    return lines


def tags_of(name: str, content: Mapping) -> dict[str, str]:
    """The tags of a version for one benchmark; `content` is the benchmark's part of metrics.json."""
    kept = {
        metric: row["retention"]
        for metric, row in content["arms"].get(PRODUCT, {}).items()
        if row.get("retention") is not None
    }
    tags = {f"{name}.{metric}.retention": str(value) for metric, value in kept.items()}
    if kept:
        tags[f"{name}.retention"] = str(next(iter(kept.values())))
    subset = " (a subset)" if content["subset"] else ""
    return {**tags, f"{name}.prompts": f"{content['prompts']}{subset}"}


def check(version: Version, required: Mapping[str, float]) -> None:
    """Refuses a version whose retention in a benchmark is lower than required.

    Args:
        version: The version, with its tags.
        required: The least retention by benchmark, or by `<benchmark>.<metric>`.

    Raises:
        ValueError: A benchmark was not recorded for this version, or its retention is too low.
    """
    for name, least in required.items():
        kept = version.tags.get(f"{name}.retention")
        if kept is None:
            raise ValueError(f"{version} has no retention in {name}: run `glance benchmark collect --record` first")
        if not float(kept) >= least:
            raise ValueError(f"{version} must keep {least:g} of the teacher's score in {name}, got {float(kept):.3f}")


def _version(store: Store, model: str, name: str, content: Mapping) -> Version:
    """The newest version of the pair that a benchmark measured."""
    digest = content["bundle_digest"]
    if not digest:
        raise ValueError(f"{name} has no images of {PRODUCT}: generate them first")
    found = store.versions.tagged(model, DIGEST, digest)
    if not found:
        raise ValueError(f"{name} measured a pair that is not registered as {model}: run `glance register` first")
    return found[-1]
