"""Gets the prompts of a benchmark from its source, checks the prompts, and saves them with their origin."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import requests

from pipeline import artifacts
from pipeline.benchmarking import places
from pipeline.evaluation.benchmarks.official import Item, OfficialBenchmark, Source, SourceFile
from pipeline.evaluation.benchmarks.table import find

ITEMS, SOURCE, FILES = "items.jsonl", "source.json", "files"
TIMEOUT_S = 60.0


def prepare(name: str, given: Path | None = None) -> list[Item]:
    """Writes `benchmarks/data/NAME/`: the prompts and their source, whole or not at all.

    Args:
        name: The benchmark.
        given: A file of the source, or the folder that holds its files; None = the files that come with the project,
            else the source's own site.

    Returns:
        The prompts.

    Raises:
        ValueError: The benchmark is unknown; a file is missing, differs from the pinned revision, or has a wrong number
            of prompts; or the site does not answer. The message says which file to put where.
    """
    benchmark = find(name)
    if given is None and _prepared(benchmark):
        return items(name)
    if given is None and benchmark.source.site == "user":
        raise ValueError(f"{name} has no prompts of its own: run `glance benchmark prepare {name} --from FILE`")
    with artifacts.atomic_dir(places.data(name)) as partial:
        (partial / FILES).mkdir()
        files = {}
        if benchmark.source.site == "user" and given is not None:
            files[given.name] = partial / FILES / given.name
            shutil.copyfile(given, files[given.name])
        for entry in benchmark.source.files:
            files[entry.name] = partial / FILES / entry.name
            _get(benchmark, entry, given, files[entry.name])
        found = _checked(benchmark, files)
        with open(partial / ITEMS, "w", encoding="utf-8") as file:
            for item in found:
                file.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")
        artifacts.write_json(partial / SOURCE, _source(benchmark.source, files, found, partial / ITEMS))
    return found


def _prepared(benchmark: OfficialBenchmark) -> bool:
    """Whether all prompts of the pinned revision are here."""
    folder, source = places.data(benchmark.name), benchmark.source
    if not (folder / SOURCE).is_file() or not (folder / ITEMS).is_file():
        return False
    content = artifacts.read_json(folder / SOURCE)
    pinned = {"repository": source.repository, "revision": source.revision, "items": digest(benchmark.name)}
    return all(content.get(key) == value for key, value in pinned.items())


def items(name: str) -> list[Item]:
    """The prompts that `prepare` wrote.

    Raises:
        ValueError: The prompts are not prepared, or their file is damaged.
    """
    file = places.data(name) / ITEMS
    if not file.is_file():
        raise ValueError(f"the prompts of {name} are not here: run `glance benchmark prepare {name}`")
    try:
        return [Item(**json.loads(line)) for line in artifacts.read_text(file).splitlines()]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}): run `glance benchmark prepare {name}`") from error


def digest(name: str) -> str:
    """The digest of a benchmark's prompts, "sha256:<hex>"."""
    return artifacts.file_digest(places.data(name) / ITEMS)


def _checked(benchmark: OfficialBenchmark, files: Mapping[str, Path]) -> list[Item]:
    found = benchmark.parse(files)
    counts = Counter(item.category for item in found)
    if benchmark.counts and counts != benchmark.counts:
        wrong = next(key for key in {**benchmark.counts, **counts} if counts[key] != benchmark.counts.get(key, 0))
        raise ValueError(
            f"{benchmark.name} must have {benchmark.counts.get(wrong, 0)} prompts{f' of {wrong}' if wrong else ''},"
            f" got {counts[wrong]}: use revision {benchmark.source.revision} of {benchmark.source.repository}"
        )
    twice = [name for name, count in Counter(item.id for item in found).items() if count > 1]
    if twice:
        raise ValueError(f"{benchmark.name} must name each prompt once, got {twice[0]} twice")
    return found


def _get(benchmark: OfficialBenchmark, entry: SourceFile, given: Path | None, target: Path) -> None:
    """Puts one file of the source at `target`, and compares its digest with the pinned one; returns its origin."""
    source, shipped = benchmark.source, places.PROMPTS / benchmark.name / entry.name
    place: Path | str
    if given is not None:
        place = _in(given, entry, benchmark)
        shutil.copyfile(place, target)
    elif source.shipped or source.site == "local":
        if not shipped.is_file():
            raise ValueError(f"{shipped} is missing: restore it with `git checkout {shipped}`")
        place = shipped
        shutil.copyfile(place, target)
    else:
        place = _download(benchmark, entry, target)
    found = artifacts.file_digest(target).removeprefix("sha256:")
    if entry.sha256 is not None and found != entry.sha256:
        raise ValueError(
            f"{place} must have the sha256 {entry.sha256}, that of revision {source.revision} of"
            f" {source.repository}, got {found}"
        )


def _in(given: Path, entry: SourceFile, benchmark: OfficialBenchmark) -> Path:
    """One file of the source, from the file or folder that the user names."""
    if given.is_file():
        if len(benchmark.source.files) > 1:
            names = ", ".join(file.name for file in benchmark.source.files)
            raise ValueError(f"--from must be a folder with {names}, got the file {given}")
        return given
    for candidate in (given / entry.path, given / entry.name):
        if candidate.is_file():
            return candidate
    raise ValueError(f"--from must hold {entry.path}, got {given} without it")


def _download(benchmark: OfficialBenchmark, entry: SourceFile, target: Path) -> str:
    """Downloads one file at the pinned revision; returns its address."""
    source = benchmark.source
    how = (
        f"go online, or get that file at revision {source.revision or 'main'} yourself and run"
        f" `glance benchmark prepare {benchmark.name} --from FOLDER`"
    )
    if source.site == "hub-dataset":
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

        try:
            file = hf_hub_download(source.repository, entry.path, revision=source.revision or None, repo_type="dataset")
        except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
            raise ValueError(f"the hub does not give {entry.path} of {source.repository}: {how}") from error
        shutil.copyfile(file, target)
        return file
    address = f"https://raw.githubusercontent.com/{source.repository}/{source.revision}/{entry.path}"
    try:
        answer = requests.get(address, timeout=TIMEOUT_S)
        answer.raise_for_status()
    except requests.RequestException as error:
        raise ValueError(f"GitHub does not give {entry.path} of {source.repository}: {how}") from error
    target.write_bytes(answer.content)
    return address


def _source(source: Source, files: Mapping[str, Path], found: list[Item], written: Path) -> dict:
    return {
        "site": source.site,
        "repository": source.repository,
        "revision": source.revision,
        "licence": source.licence,
        "files": {name: artifacts.file_digest(file) for name, file in files.items()},
        "items": artifacts.file_digest(written),
        "prompts": len(found),
        "categories": dict(Counter(item.category for item in found)),
    }
