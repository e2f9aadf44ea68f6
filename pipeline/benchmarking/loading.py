"""Finds and identifies the weights of a scorer, and loads the scorer at its first use."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline import artifacts, backbones, leftovers
from pipeline.benchmarking.scorers import Entry, Extractor, Lacking, Scorer, Weight
from pipeline.benchmarking.values import Identity


class Loaded:
    """A scorer and its weights; the model itself is loaded for the first image.

    Raises:
        Lacking: A weight is not configured, or a package is not installed.
        ValueError: A configured weight is missing, or a file has another digest than the pinned one.
    """

    def __init__(self, entry: Entry, weights: Mapping[str, Path], device: str) -> None:
        self.entry = entry
        self.device = device
        self.places = {weight.name: _place(entry, weight, weights) for weight in entry.weights}
        digests = {weight.name: _digest(weight, self.places[weight.name]) for weight in entry.weights}
        packages = {name: _version(entry, name) for name in entry.packages}
        self.identity = Identity(scorer=entry.name, version=str(entry.version), weights=digests, packages=packages)

    @cached_property
    def model(self) -> Scorer | Extractor:
        """The scorer itself."""
        return self.entry.load(self.places, backbones.resolve_device(self.device))


def _place(entry: Entry, weight: Weight, configured: Mapping[str, Path]) -> Path:
    """The path of a weight: as configured, or in the hub's own cache at the pinned revision."""
    if weight.name in configured:
        place = configured[weight.name]
        if not place.exists():
            raise ValueError(f"weights.{weight.name} of benchmarks/params.yaml must be there, got {place}")
        return place
    if "@" in weight.hub:
        from huggingface_hub import snapshot_download, try_to_load_from_cache
        from huggingface_hub.errors import LocalEntryNotFoundError

        repository, _, revision = weight.hub.partition("@")
        if weight.file:
            cached = try_to_load_from_cache(repository, weight.file, revision=revision)
            if isinstance(cached, str):
                return Path(cached)
        else:
            try:
                return Path(snapshot_download(repository, revision=revision, local_files_only=True))
            except (LocalEntryNotFoundError, OSError):
                pass
    what = f"{weight.file} of {weight.hub}" if weight.file else weight.hub
    raise Lacking(
        f"{entry.name} needs the weights {weight.name} ({weight.licence}): download {what} and name its place under"
        f" weights.{weight.name} in benchmarks/params.yaml"
    )


def _digest(weight: Weight, place: Path) -> str:
    """The digest of a weight's bytes, cached by size and time of change, since a large file takes minutes to read.

    Raises:
        ValueError: A file has another digest than the pinned one.
    """
    memory = leftovers.folder("benchmarks") / "weights.json"
    known = artifacts.read_json(memory) if memory.is_file() else {}
    files = [place] if place.is_file() else [place / name for name in artifacts.files(place)]
    state = artifacts.digest_of(
        [[file.resolve().as_posix(), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    )
    if state not in known:
        known[state] = artifacts.file_digest(place) if place.is_file() else artifacts.folder_digest(place)
        artifacts.write_json(memory, known)
    if weight.sha256 is not None and known[state] != f"sha256:{weight.sha256}":
        raise ValueError(
            f"weights.{weight.name} must have the sha256 {weight.sha256}, got {known[state][7:]} in {place}"
        )
    return known[state]


def _version(entry: Entry, package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError as error:
        raise Lacking(f"{entry.name} needs {package}: run `pip install -e '.[benchmarks]'`") from error
