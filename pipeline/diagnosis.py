"""Checks what the pipeline needs of a machine and a checkout, one function per need: the fault, and its fix."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from pipeline import artifacts, faults, params, rwlock, styles
from pipeline.registry import connection, places

DISTRIBUTION = "glance-pipeline"


class Finding(NamedTuple):
    """The result of a check; `fix` says what to do if `ok` is False."""

    ok: bool
    text: str
    fix: str = ""


def git() -> Finding:
    """Is this a git repository?"""
    try:
        found = _git("rev-parse", "--is-inside-work-tree")
    except FileNotFoundError:
        return Finding(False, "git is not installed", "install git; DVC cannot work without it")
    if found is None:
        return Finding(False, f"{Path.cwd()} is not in a git repository", "clone the project, or run `git init`")
    return Finding(True, "a repository")


def commit() -> Finding:
    """Is there a commit? `dvc exp run` starts from one."""
    try:
        revision = _git("rev-parse", "--verify", "HEAD")
    except FileNotFoundError:
        revision = None
    if revision is None:
        return Finding(False, "there is no commit yet, `dvc exp run` needs one", "git add -A && git commit -m start")
    return Finding(True, revision[:12])


def dvc() -> Finding:
    """Is DVC initialised, with a graph?"""
    if not Path(".dvc").is_dir():
        return Finding(False, f"DVC is not initialised in {Path.cwd()}", "go to the project's root, or run `dvc init`")
    if not Path("dvc.yaml").is_file():
        return Finding(False, "dvc.yaml is missing", "git checkout dvc.yaml")
    return Finding(True, "initialised")


def dvc_record() -> Finding:
    """Can DVC read its record of readers and writers?"""
    found = rwlock.fault(Path.cwd())
    if found:
        return Finding(False, f"{rwlock.TMP / 'rwlock'} is unusable: {found}", "run `glance doctor --fix`")
    return Finding(True, "readable, or none")


def code() -> Finding:
    """Does the code that runs belong to this checkout?"""
    found = artifacts.other_checkout()
    if found:
        return Finding(False, found, "run `python -m pipeline.cli doctor`, or `make setup` and then .venv/bin/glance")
    return Finding(True, artifacts.code_digest()[:12])


def packages() -> Finding:
    """Are the installed versions in the ranges of the package's own metadata?"""
    try:
        required = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or ()]
    except metadata.PackageNotFoundError:
        return Finding(False, f"{DISTRIBUTION} is not installed", "make install")
    required = [r for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
    wrong = [text for text in map(_misfit, required) if text]
    if wrong:
        return Finding(False, "; ".join(wrong), "pip install -e . -c constraints.txt")
    return Finding(True, f"{len(required)} in range")


def parameters() -> Finding:
    """Is params.yaml valid, and does everything that it names exist?"""
    from pipeline import checking

    try:
        checking.load()
    except faults.Faults as error:
        return Finding(False, "\n     ".join(error.sentences), "correct params.yaml")
    except ValueError as error:
        return Finding(False, str(error), "correct params.yaml")
    return Finding(True, "valid")


def teacher() -> Finding:
    """Are the teacher and its LoRAs there, do they fit params.yaml, and was the bundle made for this teacher?"""
    try:
        loaded = params.load()
        settings = loaded.teacher
    except ValueError:
        return Finding(False, "params.yaml does not say where the teacher is", "correct params.yaml")
    path = Path(settings.path)
    if not path.is_dir():
        fix = (
            "run `glance fetch`" if settings.hub else f"git checkout {path}, or set teacher.path to a diffusers folder"
        )
        return Finding(False, f"{path} is missing", fix)

    rivals = [file for rival in loaded.published.values() for file in rival.files]
    for lora in styles.missing([*settings.loras, *rivals]):
        return Finding(False, f"{lora.path} is missing", lora.how_to_get)

    from pipeline import backbones
    from pipeline.backbones import weight_files

    try:
        base = backbones.load(settings.base, loaded.runtime.device, ())
        base.schedule(settings.height, settings.width)
        for name in (name for part in base.part_modules.values() for name in part):
            weight_files.renamed(path / name)
    except (ValueError, OSError) as error:
        return Finding(False, str(error), "correct teacher in params.yaml, or restore or replace the folder")
    try:
        digest = backbones.digest(path, settings.loras)
        if not artifacts.BUNDLE.is_dir():
            return Finding(True, f"{digest[:19]}, no bundle yet")
        wanted = artifacts.read_json(artifacts.BUNDLE / "glance.json").get("base_digest")
    except (ValueError, OSError) as error:
        return Finding(False, str(error), f"git checkout {path} and run `dvc repro`")
    if digest != wanted:
        text = f"{path} is {digest}, the bundle in {artifacts.BUNDLE} was made for {wanted}"
        return Finding(False, text, "run `dvc repro`, or restore the teacher")
    return Finding(True, f"{digest[:19]}, as in the bundle")


def fit() -> Finding:
    """Will recording, training and evaluating fit into the device's memory, and the cache onto the disk?"""
    try:
        loaded = params.load()
        from pipeline import memory

        needed, have = memory.estimate(loaded), memory.capacity(loaded.runtime.device)
    except (ValueError, OSError) as error:
        return Finding(False, f"cannot be estimated: {error}", "fix the teacher first")
    free = shutil.disk_usage(Path.cwd()).free
    peaks = [f"{work} about {peak / memory.GIB:.1f}" for work, peak in needed.peaks.items()]
    text = (
        f"{', '.join(peaks)} GiB of {have / memory.GIB:.1f}; "
        f"the cache {needed.cache / memory.GIB:.1f} GiB of {free / memory.GIB:.1f} on disk"
    )
    if needed.device > have:
        return Finding(False, text, memory.advice(loaded, needed, have))
    if needed.cache > free:
        return Finding(False, text, "free some disk, or lower trajectories.prompts or seeds_per_prompt")
    return Finding(True, text)


def registry() -> Finding:
    """Does the MLflow store answer, can it be written to, and are the files of candidate and champion there?"""
    from pipeline.registry.verifying import lost

    try:
        uri = places.tracking_uri()
        file = places.database_file(uri)
        if file is not None and not file.exists():
            return Finding(True, f"{places.public_uri(uri)} will be made by the first registration")
        store = connection.connect(uri)
    except OSError as error:
        return Finding(False, str(error), "start the server, or correct or unset MLFLOW_TRACKING_URI")
    try:
        name = params.load().register.name
    except ValueError:
        return Finding(False, "params.yaml does not name the model", "correct params.yaml")
    wrong = {}
    try:
        store.experiments.probe(name)
    except OSError as error:
        wrong[str(error)] = "do so, or every registration fails"
    try:
        wrong |= lost(store, name)
    except OSError as error:
        wrong[str(error)] = "make the store readable"
    return Finding(not wrong, "; ".join(wrong) or places.public_uri(uri), "; ".join(dict.fromkeys(wrong.values())))


CHECKS: dict[str, Callable[[], Finding]] = {
    "git": git,
    "commit": commit,
    "dvc": dvc,
    "dvc's record": dvc_record,
    "code": code,
    "packages": packages,
    "params.yaml": parameters,
    "teacher": teacher,
    "memory": fit,
    "registry": registry,
}


def run() -> Iterator[tuple[str, Finding]]:
    """Runs every check, one after the other, so that the caller can show each as it comes."""
    for name, check in CHECKS.items():
        yield name, check()


def _git(*arguments: str) -> str | None:
    """What a git command prints; None when it fails. Raises FileNotFoundError without git."""
    done = subprocess.run(["git", *arguments], capture_output=True, encoding="utf-8", errors="replace", check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _misfit(requirement: Requirement) -> str | None:
    """What is wrong with a required package; None if nothing is."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is missing"
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return f"{requirement.name} {version} is not {requirement.specifier}"
