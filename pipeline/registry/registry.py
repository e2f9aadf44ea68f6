"""Registers a bundle with what made it, promotes a version, pulls one back.

A bundle is known by the digest of its bytes: registering the same bytes again publishes the run but makes no second
version, unless the first one's files are gone. A version is made when its files have been read back. A pull takes data,
never code, and arrives whole or not at all.
"""

import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline import artifacts
from pipeline.artifacts import BUNDLE, EVALUATION, atomic_dir, folder_digest, read_json
from pipeline.evaluation import outcome
from pipeline.evaluation.benchmarks.scenes import SCENES
from pipeline.evaluation.benchmarks.speed import SPEED
from pipeline.params import Params
from pipeline.registry import places, provenance, tracking
from pipeline.registry.tracking import Store, Version

CANDIDATE = "candidate"  # the bundle that the pipeline registered last
CHAMPION = "champion"  # the one that somebody promoted
DIGEST = "bundle_digest"
FOLDER = "bundle"  # of the run's artifacts
SUFFIXES = (".safetensors", ".json", ".md")  # what a bundle may hold: nothing that runs when it is read
UNKNOWN = "none: no `dvc repro` here made this bundle"  # the tag `provenance` of a run without stages
MEASURING = {"generate_images", "evaluate", "time_arms", "report"}  # the stages of the pipeline's own evaluation
HEADLINE = tuple(key for column in (*SCENES.columns, *SPEED) if column.headline for key in column.keys)
"""What a version is tagged with, of the student's row."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Registration:
    """What `register` did: the run it published, and the version, which is new or had these bytes before."""

    version: Version
    run_id: str
    created: bool


def register(
    params: Params, bundle: Path = BUNDLE, evaluation: Path = EVALUATION, lock: Path = Path("dvc.lock")
) -> Registration:
    """Publishes a bundle's run and the bundle as a model version named `candidate`.

    The run of the pipeline's own bundle is this `dvc repro`, with a child per stage. Of any other bundle nothing is
    known but its manifest and its evaluation: the run has those, and says that no `dvc repro` here made it.

    Args:
        params: The parameters; `register.name` names the model and the experiment.
        bundle: The folder that becomes the version.
        evaluation: The folder with metrics.json; `outcome.latency_file` says where its times are.
        lock: The dvc.lock that says what each stage read and wrote.

    Raises:
        ValueError: The bundle is incomplete or holds other files than a bundle may, the evaluation is missing or
            measured something else, dvc.lock is missing, or the bytes that were uploaded do not come back.
        ConnectionError: The MLflow server is down or refuses, the experiment is deleted, or its artifact store cannot
            be written or read.
    """
    store = tracking.connect()
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

    with tracking.locked():
        experiment_id = store.experiment(params.register.name)
        store.begin(experiment_id)
        with store.run(experiment_id, name) as run_id:
            store.log(run_id, provenance.flatten(settings), provenance.numbers(metrics), facts)
            store.log_files(run_id, {lock: "."} if made_here else {})
            store.log_files(run_id, {} if made_here and measured_here else provenance.shown([evaluation]))
            for record in records:
                with store.run(experiment_id, record.name, parent=run_id) as child:
                    tags = {"stage": record.name, "command": record.command, **record.digests}
                    store.log(child, record.params, record.metrics(), tags)
                    store.log_files(child, record.files())
            version, created = _version(store, params.register.name, digest, run_id, bundle, {**facts, **headline})
            with store.run(experiment_id, "register", parent=run_id) as child:
                own = provenance.flatten({"register": asdict(params.register)})
                store.log(child, own, tags={"stage": "register", DIGEST: digest, "model_version": version.number})
            store.log(run_id, tags={"model_version": version.number})
            store.tag(version, {**headline, "measured_by": run_id})
            store.set_alias(version, CANDIDATE)
    return Registration(version, run_id, created)


def promote(params: Params, reference: str | None = None, force: bool = False) -> Version:
    """Points the alias `champion` at a version.

    Args:
        params: `register.min_retention` is the least share of the teacher's score that a champion keeps.
        reference: `models:/name@alias`, `models:/name/version`, or a version number; None = the candidate.
        force: Promote whatever was measured.

    Raises:
        ValueError: The retention is below the threshold or was never measured, the version's files are gone or changed,
            or the reference has another form.
        ConnectionError: There is no such version, or the server is down.
    """
    name = params.register.name
    if reference is None:
        reference = f"models:/{name}@{CANDIDATE}"
    elif reference.isdecimal():
        reference = f"models:/{name}/{reference}"
    parse(reference)
    store = tracking.connect()
    version = find(store, reference)
    retention, threshold = version.tags.get("retention"), params.register.min_retention
    if not force:
        if retention is None:
            raise ValueError(f"{version} has no measured retention: evaluate it, or promote it with --force")
        if not float(retention) >= threshold:
            raise ValueError(
                f"{version} keeps {float(retention):.3f} of the teacher's score, register.min_retention asks for"
                f" {threshold:g}: train a better one, or promote it with --force"
            )
    verify(store, version)
    store.set_alias(version, CHAMPION)
    return version


def pull(reference: str, target: Path | None = None) -> Path:
    """Downloads a version, checks its bytes and moves it into place whole.

    Args:
        reference: `models:/name@alias` or `models:/name/version`.
        target: The folder to make; None = a folder named by the digest under `$DVC_ROOT/.glance/bundles`.

    Returns:
        The folder. It is left alone if it holds these bytes already.

    Raises:
        ValueError: The version holds files that no bundle has, its bytes are not the ones that were registered, or
            `target` holds something else.
        ConnectionError: There is no such version, or the server is down.
    """
    from pipeline.bundle.manifest import bundle_digest

    parse(reference)
    store = tracking.connect()
    version = find(store, reference)
    digest = _digest(version)
    if target is None:
        target = places.home() / "bundles" / digest.removeprefix("sha256:")
    with tracking.locked():  # two pulls of a version into one folder: the second finds it there
        if target.exists():
            if target.is_dir() and artifacts.files(target) and bundle_digest(target) == digest:
                return target
            raise ValueError(f"{target} exists and is not {version}: remove it, or name another folder")
        with atomic_dir(target) as partial:
            _download(store, str(version), version.source, digest, partial)
    return target


def verify(store: Store, version: Version) -> None:
    """Reads a version's files back.

    Raises:
        ValueError: They are gone, or not what was registered.
        ConnectionError: The artifact store cannot be read.
    """
    with TemporaryDirectory(dir=places.home(), prefix=".verify-") as scratch:
        _download(store, str(version), version.source, _digest(version), Path(scratch))


def lost(store: Store, name: str) -> dict[str, str]:
    """What is wrong with the files of a model's candidate and champion, and how to fix it; {} where they are there.

    Raises:
        ConnectionError: The store refuses.
    """
    wrong, versions = {}, store.aliases(name)
    for alias, advice in (
        (CANDIDATE, "run `glance register`"),
        (CHAMPION, "register the champion's bundle anew and promote it, or promote another version"),
    ):
        if alias in versions:
            try:
                verify(store, versions[alias])
            except (ValueError, OSError) as error:
                wrong[f"the {alias}: {error}"] = advice
    return wrong


def check_files(owner: str, names: Iterable[str]) -> None:
    """Refuses names that no bundle has: a pickle or a program in a download is never read; nor is a hidden file.

    Raises:
        ValueError: There is no file, or one that is not safetensors, json or md.
    """
    names = sorted(name for name in names if not artifacts.foreign(name.rstrip("/@")))
    if not names:
        raise ValueError(f"{owner} holds no files")
    for name in names:
        if not name.endswith(SUFFIXES):
            raise ValueError(f"{owner} holds {name}; a bundle has only {', '.join(SUFFIXES)} files")


def parse(reference: str) -> tuple[str, str | None, int | None]:
    """Takes a reference apart: (name, alias, None) or (name, None, version number).

    Raises:
        ValueError: The reference has another form.
    """
    match = re.fullmatch(r"models:/([^/@:]+)(?:@([^/@:]+)|/(\d+))", reference)
    if match is None:
        raise ValueError(f"a version is named models:/name@alias or models:/name/version, got {reference!r}")
    name, alias, number = match.groups()
    return name, alias, None if number is None else int(number)


def find(store: Store, reference: str) -> Version:
    """The version that a reference names.

    Raises:
        ValueError: The reference has another form than `parse` takes.
        ConnectionError: There is no such version.
    """
    name, alias, number = parse(reference)
    return store.by_number(name, number) if alias is None else store.by_alias(name, alias)


def _digest(version: Version) -> str:
    digest = version.tags.get(DIGEST)
    if digest is None:
        raise ValueError(f"{version} has no tag {DIGEST}: it was not registered by this pipeline")
    return digest


def _download(store: Store, owner: str, source: str, digest: str, folder: Path) -> None:
    """Copies the files at a version's source into an empty folder; raises ValueError if they are not the digest's."""
    from pipeline.bundle.manifest import bundle_digest

    names = store.files(source)
    if not names:
        place = places.present(source)
        raise ValueError(
            f"{owner} holds no files: nothing is at {places.folder(place) or places.public_uri(place)}; register its"
            " bundle again"
        )
    check_files(owner, names)
    store.download(source, folder)
    check_files(owner, _names(folder))
    got = bundle_digest(folder)
    if got != digest:
        raise ValueError(f"{owner} does not match its digest: registered as {digest}, downloaded {got}")
    for path in [path for path in folder.iterdir() if artifacts.foreign(path.name)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _verified_digest(bundle: Path) -> str:
    from pipeline.bundle.manifest import Bundle, bundle_digest

    Bundle.load(bundle)
    check_files(str(bundle), _names(bundle))
    return bundle_digest(bundle)


def _made_here(digest: str) -> bool:
    """Whether these are the bytes of the pipeline's own bundle, wherever they lie."""
    return (BUNDLE / "glance.json").is_file() and folder_digest(BUNDLE) == digest


def _same(path: Path, other: Path) -> bool:
    return path.resolve() == other.resolve()


def _metrics(evaluation: Path, bundle: Path, digest: str, base_digest: str) -> Mapping:
    """Scores and times of an evaluation, which must be this bundle's on its own base."""
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
    """What holds for a bundle that the stages here did not make: how it was measured, and what it says of itself."""
    used = {name: asdict(getattr(params, name)) for name in ("teacher", "evaluation", "register")}
    said = {key: manifest[key] for key in ("u", "steps", "teacher_steps", "rank", "guidance")}
    return {**used, "bundle": {**said, "path": manifest.get("path", "consistent")}}


def _names(folder: Path) -> list[str]:
    """What lies in a folder; a folder's name ends with a slash, and a link's with an @."""
    return [f"{p.name}{'@' if p.is_symlink() else '/' if p.is_dir() else ''}" for p in folder.iterdir()]


def _headline(metrics: Mapping) -> dict[str, float]:
    try:
        student = metrics["arms"]["student"]
        return {key: student[key] for key in HEADLINE if student.get(key) is not None}
    except (KeyError, TypeError) as error:
        raise ValueError("metrics.json has no arms.student: the evaluation is incomplete") from error


def _version(
    store: Store, name: str, digest: str, run_id: str, bundle: Path, tags: Mapping[str, str]
) -> tuple[Version, bool]:
    """The version with these bytes whose files are there, made if there is none, and whether it was made."""
    lost = set()
    for version in store.find(name, DIGEST, digest):
        try:
            verify(store, version)
            return version, False
        except (ValueError, OSError) as error:
            log.warning("registering these bytes anew: %s", error)
            lost.add(version.number)
    source = store.log_folder(run_id, bundle, FOLDER)
    with TemporaryDirectory(dir=places.home(), prefix=".verify-") as scratch:
        _download(store, f"the upload of {bundle}", source, digest, Path(scratch))
    made = store.create_version(name, source, run_id, tags)
    first, *_ = [version for version in store.find(name, DIGEST, digest) if version.number not in lost]
    if first.number < made.number:  # another machine has registered in the meantime: the older stays
        store.delete_version(made)
        return first, False
    return made, True
