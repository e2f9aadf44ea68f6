"""Where the files of the benchmarks lie.

benchmarks/data/NAME/                 the prompts of a benchmark, as `prepare` wrote them
benchmarks/images/NAME/ARM.json       the record of the images that an arm made
benchmarks/scores/NAME/ARM/           the values of these images, a file for each scorer
benchmarks/results/                   the table and the report
$DVC_ROOT/.glance/benchmarks/         the images themselves, and files that can be made again from them
"""

from __future__ import annotations

from pathlib import Path

from pipeline import leftovers
from pipeline.benchmarking.settings import ROOT

PROMPTS = ROOT / "prompts"
DATA = ROOT / "data"
MANIFESTS = ROOT / "images"
SCORES = ROOT / "scores"
RESULTS = ROOT / "results"


def data(benchmark: str) -> Path:
    """The folder of a benchmark's prompts."""
    return DATA / benchmark


def manifest(benchmark: str, arm: str) -> Path:
    """The record of an arm's images."""
    return MANIFESTS / benchmark / f"{arm}.json"


def scores(benchmark: str, arm: str, scorer: str, *, features: bool = False) -> Path:
    """The values of a scorer for an arm's images, or its features."""
    return SCORES / benchmark / arm / f"{scorer}.{'npz' if features else 'json'}"


def photographs(benchmark: str, scorer: str) -> Path:
    """The features of the photographs that a benchmark compares its images with."""
    return SCORES / benchmark / f"{scorer}.npz"


def images(benchmark: str, arm: str, key: str) -> Path:
    """The folder of an arm's single images; `key` is the digest of all that the images depend on."""
    return leftovers.folder("benchmarks") / benchmark / f"{arm}-{key[:16]}"
