"""One table of all benchmarks: the scores of each arm, and the retention over the teacher's scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import artifacts
from pipeline.benchmarking import comparison, manifest, places, values
from pipeline.benchmarking.manifest import Manifest
from pipeline.benchmarking.settings import Settings
from pipeline.benchmarking.values import Identity
from pipeline.evaluation.benchmarks import Column
from pipeline.evaluation.benchmarks.official import Distance, Metric, OfficialBenchmark, by_prompt
from pipeline.evaluation.benchmarks.table import find

REFERENCE = "teacher"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of one arm.

    Attributes:
        benchmark: Name of the benchmark.
        metric: The column's key.
        title: The column's title.
        better: "higher" or "lower".
        arm: Name of the arm.
        nfe: Forwards per image; None for images that were made elsewhere.
        value: The number.
        low: Lower end of the value's 95 % interval; None without an interval.
        high: Upper end; None without an interval.
        teacher: The teacher's number. Without images of the teacher this and all comparisons with it are None.
        retention: The number over the teacher's; None for distances.
        retention_low: Lower end of the retention's 95 % interval.
        retention_high: Upper end.
        difference: The number minus the teacher's.
        difference_low: Lower end of the difference's 95 % interval.
        difference_high: Upper end.
        interval: Kind of the intervals: "bootstrap over prompts", "subsampling", or "" for none.
        prompts: Prompts that count.
        images: Images that count.
        scorer: The scorer of the images.
        scorer_digest: Digest of the scorer's version, weights and packages.
        subset: Whether only the first prompts of each category count.
        published: A number that somebody published for this teacher, or None.
        published_where: The publication.
    """

    benchmark: str
    metric: str
    title: str
    better: str
    arm: str
    nfe: int | None
    value: float
    low: float | None = None
    high: float | None = None
    teacher: float | None = None
    retention: float | None = None
    retention_low: float | None = None
    retention_high: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    interval: str = ""
    prompts: int
    images: int
    scorer: str
    scorer_digest: str
    subset: bool
    published: float | None = None
    published_where: str = ""


@dataclass(frozen=True, kw_only=True)
class Collected:
    """The results of one benchmark.

    Attributes:
        benchmark: The benchmark.
        manifests: The records of the arms, the teacher first.
        rows: In the order of the metrics, then of the arms.
        waiting: The scorers that have scored no arm.
    """

    benchmark: OfficialBenchmark
    manifests: Sequence[Manifest]
    rows: Sequence[Row]
    waiting: Sequence[str]


def collect(names: Sequence[str], settings: Settings, model: str) -> list[Collected]:
    """Reads the values of all arms and compares them with the teacher's.

    Args:
        names: The benchmarks.
        settings: Resamples, seed and references.
        model: The teacher's path or hub name, for published numbers.

    Raises:
        ValueError: An arm lacks values that others have, two arms were scored by different scorers or have other
            prompts, seeds or sizes; a benchmark has no arm; or the teacher's score is too low for a working scorer.
    """
    return [_collect(find(name), settings, model.lower()) for name in names]


def write(collected: Sequence[Collected], folder: Path = places.RESULTS) -> None:
    """Writes `table.csv` and then `metrics.json`, each whole."""
    rows = [asdict(row) for found in collected for row in found.rows]
    with artifacts.atomic_file(folder / "table.csv") as partial:
        pd.DataFrame(rows, columns=[f.name for f in fields(Row)]).to_csv(partial, index=False, encoding="utf-8")
    content = {}
    for found in collected:
        arms: dict[str, dict] = {own.arm: {} for own in found.manifests}
        for row in found.rows:
            arms[row.arm][row.metric] = {
                key: getattr(row, key)
                for key in ("value", "low", "high", "retention", "retention_low", "retention_high", "difference")
                if getattr(row, key) is not None
            }
        content[found.benchmark.name] = {
            "prompts": max((row.prompts for row in found.rows), default=0),
            "subset": any(row.subset for row in found.rows),
            "waiting": list(found.waiting),
            "teacher_digest": next((own.teacher for own in found.manifests if own.teacher), ""),
            "bundle_digest": next((own.bundle for own in found.manifests if own.arm == "student"), ""),
            "arms": arms,
        }
    artifacts.write_json(folder / "metrics.json", content)


def _collect(benchmark: OfficialBenchmark, settings: Settings, model: str) -> Collected:
    manifests = [manifest.load(benchmark.name, arm) for arm in manifest.arms(benchmark.name)]
    if not manifests:
        raise ValueError(f"{benchmark.name} has no images: run `glance benchmark generate {benchmark.name}`")
    _check_alike(benchmark, manifests)
    rows: list[Row] = []
    waiting = [name for name in benchmark.scorers if not _scored(benchmark, name, manifests)]
    for metric in benchmark.metrics:
        if metric.scorer not in waiting:
            rows += _metric(benchmark, metric, manifests, settings, model)
    for distance in benchmark.distances:
        if distance.scorer not in waiting:
            rows += _distance(benchmark, distance, manifests, settings)
    _check_sanity(benchmark, rows)
    return Collected(benchmark=benchmark, manifests=manifests, rows=rows, waiting=waiting)


def _check_alike(benchmark: OfficialBenchmark, manifests: Sequence[Manifest]) -> None:
    """Refuses arms of different prompts, seeds or sizes."""
    first = manifests[0]
    for other in manifests[1:]:
        for key in ("prompts", "limit", "seeds", "seed", "height", "width", "teacher"):
            ours, theirs = getattr(first, key), getattr(other, key)
            elsewhere = first.nfe is None or other.nfe is None
            if ours != theirs and not (elsewhere and key in ("seed", "teacher")):
                raise ValueError(
                    f"{benchmark.name}: {other.arm} must have the {key} of {first.arm}, {ours}, got {theirs}:"
                    " generate both anew"
                )


def _scored(benchmark: OfficialBenchmark, scorer: str, manifests: Sequence[Manifest]) -> bool:
    """Whether any arm has values of a scorer."""
    extracts = scorer in {distance.scorer for distance in benchmark.distances}
    return any(places.scores(benchmark.name, own.arm, scorer, features=extracts).is_file() for own in manifests)


def _one_identity(scorer: str, found: Mapping[str, Identity]) -> str:
    """The digest of the scorer of all arms. Raises ValueError if two arms had different scorers."""
    (first, identity), *others = found.items()
    for arm, other in others:
        if other != identity:
            key = next(f.name for f in fields(Identity) if getattr(identity, f.name) != getattr(other, f.name))
            raise ValueError(
                f"{scorer} must be the same for all arms, got other {key} for {arm} than for {first}: score both anew"
            )
    return identity.digest


def _metric(
    benchmark: OfficialBenchmark, metric: Metric, manifests: Sequence[Manifest], settings: Settings, model: str
) -> list[Row]:
    read = {own.arm: values.read(own, metric.scorer) for own in manifests}
    digest = _one_identity(metric.scorer, {arm: identity for arm, (identity, _) in read.items()})
    items = [item for _, item in manifest.chosen(benchmark, manifests[0])]
    asked = [item for item in items if metric.asks(item)]
    if not asked:
        return []
    for arm, (_, said) in read.items():
        values.complete(benchmark, metric.scorer, items, said, f"what {metric.scorer} said of {arm}")
    table = {arm: by_prompt(metric, said, items) for arm, (_, said) in read.items()}
    published = next(
        (own for own in benchmark.published if own.metric == metric.column.key and own.model in model), None
    )
    rows = []
    for own in manifests:
        numbers, categories = table[own.arm]
        reference = table[REFERENCE][0] if REFERENCE in table else None
        compared = comparison.metric(metric, numbers, reference, categories, settings)
        rows.append(
            Row(
                **_common(benchmark, metric.column, own, metric.scorer, digest),
                **compared,
                prompts=len(asked),
                images=len(asked) * own.seeds,
                published=published.value if published and own.arm == REFERENCE else None,
                published_where=published.where if published and own.arm == REFERENCE else "",
            )
        )
    return rows


def _distance(
    benchmark: OfficialBenchmark, distance: Distance, manifests: Sequence[Manifest], settings: Settings
) -> list[Row]:
    read = {own.arm: values.read_features(own, distance.scorer) for own in manifests}
    digest = _one_identity(distance.scorer, {arm: identity for arm, (identity, _) in read.items()})
    features = {arm: own for arm, (_, own) in read.items()}
    reference = _reference(benchmark, distance, features, digest)
    if reference is None:
        return []
    rows = []
    for own in manifests:
        if distance.reference == REFERENCE and own.arm == REFERENCE:
            continue  # 0 by definition
        paired = features.get(REFERENCE) if distance.reference == "real" and own.arm != REFERENCE else None
        found = comparison.DISTANCES[distance.kind](features[own.arm], reference, paired, settings.seed)
        count = len(features[own.arm])
        common = _common(benchmark, distance.column, own, distance.scorer, digest)
        rows.append(Row(**common, **found, prompts=count // own.seeds, images=count))
    return rows


def _reference(
    benchmark: OfficialBenchmark, distance: Distance, features: Mapping[str, np.ndarray], digest: str
) -> np.ndarray | None:
    """The reference features for a distance; None if there are none."""
    if distance.reference == REFERENCE:
        return features.get(REFERENCE)
    file = places.photographs(benchmark.name, distance.scorer)
    if not file.is_file():
        return None
    _, identity, reference = values.features_in(file)
    if identity.digest != digest:
        raise ValueError(f"{file} must be of the same {distance.scorer} as the arms: remove it and score anew")
    return reference


def _common(benchmark: OfficialBenchmark, column: Column, own: Manifest, scorer: str, digest: str) -> dict:
    return {
        "benchmark": benchmark.name,
        "metric": column.key,
        "title": column.title,
        "better": column.better,
        "arm": own.arm,
        "nfe": own.nfe,
        "scorer": scorer,
        "scorer_digest": digest,
        "subset": own.limit is not None,
    }


def _check_sanity(benchmark: OfficialBenchmark, rows: Sequence[Row]) -> None:
    for row in rows:
        least = benchmark.sanity.get(row.metric)
        if row.arm == REFERENCE and least is not None and row.value < least:
            raise ValueError(
                f"{benchmark.name}: {row.title} of the teacher must be at least {least:g}, got {row.value:.3f}:"
                f" the scorer's environment is broken, see benchmarks/recipes/{row.scorer}/README.md"
            )
