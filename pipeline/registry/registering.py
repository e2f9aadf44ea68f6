"""Registers a bundle together with its provenance.

A bundle is identified by the digest of its bytes. Registering the same bytes again publishes the run but makes no
second version, unless the files of the first version are gone. A version is made after its files have been read back.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.artifacts import BUNDLE, EVALUATION, folder_digest, read_json
from pipeline.evaluation import outcome
from pipeline.evaluation.benchmarks.scenes import SCENES
from pipeline.evaluation.benchmarks.speed import SPEED
from pipeline.params import Params
from pipeline.registry import places, provenance
from pipeline.registry.connection import Store, connect
from pipeline.registry.lock import locked
from pipeline.registry.references import CANDIDATE
from pipeline.registry.verifying import DIGEST, check_files, download, verify
from pipeline.registry.versions import Version

FOLDER = "bundle"  # folder of the bundle in the run's artifacts
UNKNOWN = "none: no `dvc repro` here made this bundle"  # the tag `provenance` of a run without stages
MEASURING = {"generate_images", "evaluate", "time_arms", "report"}  # the stages of the pipeline's own evaluation
HEADLINE = tuple(key for column in (*SCENES.columns, *SPEED) if column.headline for key in column.keys)
"""Keys of the student's row whose values become tags of a version."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Registration:
    """The result of `register`: the published run, and the version, which is new or had these bytes before."""

    version: Version
    run_id: str
    created: bool


def register(
    params: Params, bundle: Path = BUNDLE, evaluation: Path = EVALUATION, lock: Path = Path("dvc.lock")
) -> Registration:
    """Publishes a bundle's run, and registers the bundle as a model version with the alias `candidate`.

    The run of the pipeline's own bundle describes this `dvc repro`, with a child run per stage. Of other bundles only
    the manifest and the evaluation are known: the run holds both, and says that no `dvc repro` here made the bundle.

    Args:
        params: The parameters; `register.name` names the model and the experiment.
        bundle: The folder that becomes the version.
        evaluation: The folder with metrics.json; `outcome.latency_file` gives its latency.json.
        lock: The dvc.lock with the inputs and outputs of each stage.

    Raises:
        ValueError: The bundle is incomplete or holds other files than a bundle may, the evaluation is missing or
            measured something else, dvc.lock is missing, or the upload reads back with other bytes.
        ConnectionError: The MLflow server is down or refuses, the experiment is deleted, or the artifact store cannot
            be written or read.
    """
    store = connect()
    digest = _verified_digest(bundle)
    manifest = read_json(bundle / "glance.json")
    metrics = _metrics(evaluation, bundle, digest, manifest["base_digest"])
    headline = {key: str(value) for key, value in _headline(metrics).items()}
    made_here, measured_here = _made_here(digest), _same(evaluation, EVALUATION)
    unpublished = {"register"} if measured_here else {"register", *MEASURING}
    records = [r for r in provenance.stage_records(lock) if r.name not in unpublished] if made_here else []
    experiment = provenance.dvc_experiment() if made_here else None
    revision = provenance.git_revision() if made_here else None

    facts = {DIGEST: digest, "base_digest": manifest["base_digest"], "base_model": manifest["base_model"]}
    if experiment:
        facts["dvc_experiment"] = experiment
    if revision:
        facts["git_revision"] = revision
    if made_here:
        name, settings = experiment or f"repro {(revision or digest)[:8]}", asdict(params)
    else:
        facts["provenance"] = UNKNOWN
        name, settings = f"bundle {bundle.resolve().name}", _known_of(manifest, params)

    with locked():
        experiment_id = store.experiments.ensure(params.register.name)
        store.runs.begin(experiment_id)
        with store.runs.started(experiment_id, name) as run_id:
            store.runs.log(run_id, provenance.flatten(settings), provenance.numbers(metrics), facts)
            store.runs.log_files(run_id, {lock: "."} if made_here else {})
            store.runs.log_files(run_id, {} if made_here and measured_here else provenance.shown([evaluation]))
            for record in records:
                with store.runs.started(experiment_id, record.name, parent=run_id) as child:
                    tags = {"stage": record.name, "command": record.command, **record.digests}
                    store.runs.log(child, record.params, record.metrics(), tags)
                    store.runs.log_files(child, record.files())
            version, created = _version(store, params.register.name, digest, run_id, bundle, {**facts, **headline})
            with store.runs.started(experiment_id, "register", parent=run_id) as child:
                own = provenance.flatten({"register": asdict(params.register)})
                store.runs.log(child, own, tags={"stage": "register", DIGEST: digest, "model_version": version.number})
            store.runs.log(run_id, tags={"model_version": version.number})
            store.versions.tag(version, {**headline, "measured_by": run_id})
            store.versions.set_alias(version, CANDIDATE)
    return Registration(version=version, run_id=run_id, created=created)


def _verified_digest(bundle: Path) -> str:
    from pipeline.bundle.manifest import Bundle, bundle_digest

    Bundle.load(bundle)
    check_files(str(bundle), bundle)
    return bundle_digest(bundle)


def _made_here(digest: str) -> bool:
    """Whether this is the digest of the pipeline's own bundle, wherever the registered folder lies."""
    return (BUNDLE / "glance.json").is_file() and folder_digest(BUNDLE) == digest


def _same(path: Path, other: Path) -> bool:
    return path.resolve() == other.resolve()


def _metrics(evaluation: Path, bundle: Path, digest: str, base_digest: str) -> Mapping:
    """Scores and times of an evaluation; it must have measured this bundle on its own base."""
    file = evaluation / "metrics.json"
    if not file.is_file():
        how = "`dvc repro`" if _same(evaluation, EVALUATION) else f"`glance evaluate {bundle} --out {evaluation}`"
        raise ValueError(f"{file} is missing: measure the bundle first, with {how}")
    metrics = read_json(file)
    _headline(metrics)
    for (key, what), wanted in zip(outcome.MEASURED, (digest, base_digest), strict=True):
        if metrics.get(key) != wanted:
            raise ValueError(f"{file} must measure the {what} {wanted} of {bundle}, got {metrics.get(key)}")
    return outcome.read(evaluation)


def _known_of(manifest: Mapping, params: Params) -> dict[str, Mapping]:
    """Parameters of a run for a foreign bundle: those of the evaluation, and the bundle's own manifest."""
    used = {name: asdict(getattr(params, name)) for name in ("teacher", "evaluation", "register")}
    said = {key: manifest[key] for key in ("u", "steps", "teacher_steps", "rank", "guidance")}
    return {**used, "bundle": {**said, "path": manifest.get("path", "consistent")}}


def _headline(metrics: Mapping) -> dict[str, float]:
    try:
        student = metrics["arms"]["student"]
        return {key: student[key] for key in HEADLINE if student.get(key) is not None}
    except (KeyError, TypeError) as error:
        raise ValueError("metrics.json has no arms.student: the evaluation is incomplete") from error


def _version(
    store: Store, name: str, digest: str, run_id: str, bundle: Path, tags: Mapping[str, str]
) -> tuple[Version, bool]:
    """The version with these bytes and with its files in place, and whether it was made by this call."""
    lost = set()
    for version in store.versions.tagged(name, DIGEST, digest):
        try:
            verify(store, version)
            return version, False
        except (ValueError, OSError) as error:
            log.warning("registering these bytes anew: %s", error)
            lost.add(version.number)
    source = store.runs.log_folder(run_id, bundle, FOLDER)
    with TemporaryDirectory(dir=places.home(), prefix=".verify-") as scratch:
        download(store, f"the upload of {bundle}", source, digest, Path(scratch))
    made = store.versions.create(name, source, run_id, tags)
    first, *_ = [version for version in store.versions.tagged(name, DIGEST, digest) if version.number not in lost]
    if first.number < made.number:  # another machine registered the same bytes in the meantime: keep the older version
        store.versions.delete(made)
        return first, False
    return made, True
