"""The MLflow store behind the registry; the only module that imports mlflow.

A store is sqlite under `$DVC_ROOT/.glance` unless MLFLOW_TRACKING_URI names another. MLflow is imported on the first
connection: it costs more than a second. Whatever goes wrong in it leaves here as one sentence.
"""

import functools
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from filelock import FileLock, Timeout

from pipeline import artifacts
from pipeline.artifacts import dvc_root

PING_S = 5.0  # seconds a server has to answer at all
LOCK_S = 900.0  # seconds to wait for another registration on this machine
BATCH = {"params": 100, "metrics": 1000, "tags": 100}  # what one request may carry
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the default blocks for minutes when a server is down
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

T = TypeVar("T")


class Metric(NamedTuple):
    """One number of a run; `step` is the train step of a history, 0 for a lone number."""

    key: str
    value: float
    step: int = 0


@dataclass(frozen=True)
class Version:
    """A registered model version."""

    name: str
    number: int
    source: str
    run_id: str
    tags: dict[str, str]
    aliases: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} version {self.number}"


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the sqlite file of the project."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_home() / 'mlflow.db'}"


def public_uri(uri: str) -> str:
    """A store's URI without a user's name and password, for messages and logs."""
    return re.sub(r"://[^/@]*@", "://", uri)


@contextmanager
def locked() -> Iterator[None]:
    """Holds the project's registry lock: MLflow's sqlite does not survive being initialised twice at once.

    Raises:
        TimeoutError: Another process kept the lock too long.
    """
    path = _home() / "mlflow.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=LOCK_S, is_singleton=True)  # a process may enter twice
    try:
        lock.acquire()
    except Timeout as error:
        raise TimeoutError(f"{path} is held by another registration for more than {LOCK_S:g} s") from error
    try:
        yield
    finally:
        lock.release()


def connect(uri: str | None = None) -> "Store":
    """Opens the store, and makes it if it is a sqlite file that is not there yet.

    Raises:
        ConnectionError: Nobody answers at the URI, or the store refuses.
    """
    uri = uri or tracking_uri()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.pop("MLFLOW_RUN_ID", None)  # it would override the run that is meant
    if uri.startswith(("http://", "https://")):
        _ping(uri)
    for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.tracking", "mlflow.system_metrics"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    with locked():
        return _open(uri)


def _home() -> Path:
    return dvc_root() / ".glance"


def _ping(uri: str) -> None:
    import requests  # mlflow's own client library, with its proxies and certificates

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=PING_S)  # any answer will do: a login page is alive too
    except requests.exceptions.SSLError:
        pass  # somebody answered; mlflow has its own settings for certificates
    except requests.exceptions.RequestException as error:
        raise ConnectionError(
            f"no MLflow server answers at {public_uri(uri)}: start it, or unset MLFLOW_TRACKING_URI"
        ) from error


def _one_sentence(function: Callable[..., T]) -> Callable[..., T]:
    """Turns MLflow's exceptions, which carry whole server pages, into one sentence."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> T:
        from mlflow.exceptions import MlflowException

        try:
            return function(*args, **kwargs)
        except MlflowException as error:
            uri = args[0].uri if isinstance(args[0], Store) else args[0]
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ConnectionError(f"MLflow at {public_uri(uri)} refused: {public_uri(lines[0])[:300]}") from error

    return wrapped


@_one_sentence
def _open(uri: str) -> "Store":
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.search_experiments(max_results=1)  # makes the tables
    client.search_registered_models(max_results=1)
    return Store(uri, client)


class Store:
    """Runs and model versions of one MLflow server or database; made by `connect`.

    Every method raises ConnectionError when MLflow refuses or is gone.
    """

    def __init__(self, uri: str, client: Any) -> None:
        self.uri = uri
        self._client = client

    @_one_sentence
    def experiment(self, name: str) -> str:
        """The id of an experiment, made if missing.

        A database's artifacts lie under `$DVC_ROOT`, or they would go with a temporary working directory.
        """
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        local = not self.uri.startswith(("http://", "https://", "databricks"))
        folder = (_home() / "mlartifacts").as_uri() if local else None
        return self._client.create_experiment(name, artifact_location=folder)

    @contextmanager
    def run(self, experiment_id: str, name: str, parent: str | None = None) -> Iterator[str]:
        """Opens a run and yields its id; the run is finished, failed or killed as the body was."""
        run_id = self._start(experiment_id, name, parent)
        status = "FAILED"
        try:
            yield run_id
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            self._end(run_id, status)

    @_one_sentence
    def _start(self, experiment_id: str, name: str, parent: str | None) -> str:
        tags = {"mlflow.parentRunId": parent} if parent else {}
        return self._client.create_run(experiment_id, run_name=name, tags=tags).info.run_id

    @_one_sentence
    def _end(self, run_id: str, status: str) -> None:
        self._client.set_terminated(run_id, status)

    @_one_sentence
    def log(
        self,
        run_id: str,
        params: Mapping[str, object] | None = None,
        metrics: Iterable[Metric] = (),
        tags: Mapping[str, object] | None = None,
    ) -> None:
        """Writes a run's parameters, numbers and tags in few requests."""
        from mlflow.entities import Metric as MlflowMetric
        from mlflow.entities import Param, RunTag

        now = int(time.time() * 1000)
        entities = {
            "params": [Param(_key(key), str(value)) for key, value in (params or {}).items()],
            "metrics": [MlflowMetric(_key(metric.key), metric.value, now, metric.step) for metric in metrics],
            "tags": [RunTag(_key(key), str(value)) for key, value in (tags or {}).items()],
        }
        for kind, items in entities.items():
            for batch in _batches(items, BATCH[kind]):
                self._client.log_batch(run_id, **{kind: batch})

    @_one_sentence
    def log_files(self, run_id: str, files: Mapping[Path, str]) -> None:
        """Copies files into a run's artifacts, each into its folder there; "." is the root."""
        for file, folder in files.items():
            self._client.log_artifact(run_id, str(file), None if folder == "." else folder)

    @_one_sentence
    def log_folder(self, run_id: str, source: Path, folder: str) -> str:
        """Copies a folder's files into a run's artifacts as `folder`; returns its URI."""
        for name in artifacts.files(source):
            self._client.log_artifact(run_id, str(source / name), (Path(folder) / name).parent.as_posix())
        return f"{self._client.get_run(run_id).info.artifact_uri.rstrip('/')}/{folder}"

    @_one_sentence
    def find(self, name: str, tag: str, digest: str) -> list[Version]:
        """The versions of a model whose tag is this digest, the oldest first."""
        found = self._client.search_model_versions(f"tags.`{tag}` = '{digest}'")  # a name may need quotes in a filter
        return sorted((_version(v) for v in found if v.name == name), key=lambda version: version.number)

    @_one_sentence
    def create_version(self, name: str, source: str, run_id: str, tags: Mapping[str, str]) -> Version:
        """Registers the artifacts at `source` as a new version, and the model's name if it is new."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        return _version(self._client.create_model_version(name, source, run_id, tags=dict(tags)))

    @_one_sentence
    def delete_version(self, version: Version) -> None:
        """Takes a version out of the registry; its run stays."""
        self._client.delete_model_version(version.name, str(version.number))

    @_one_sentence
    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        """Sets tags of a version."""
        for key, value in tags.items():
            self._client.set_model_version_tag(version.name, str(version.number), key, value)

    @_one_sentence
    def set_alias(self, version: Version, alias: str) -> None:
        """Points an alias at a version."""
        self._client.set_registered_model_alias(version.name, alias, str(version.number))

    @_one_sentence
    def by_alias(self, name: str, alias: str) -> Version:
        """The version that an alias points at."""
        return _version(self._client.get_model_version_by_alias(name, alias))

    @_one_sentence
    def by_number(self, name: str, number: int) -> Version:
        """A version by its number."""
        return _version(self._client.get_model_version(name, str(number)))

    @_one_sentence
    def files(self, version: Version) -> list[str]:
        """The names of a version's files, without downloading them; a folder's name ends with a slash."""
        from mlflow.artifacts import list_artifacts

        found = list_artifacts(artifact_uri=version.source, tracking_uri=self.uri)
        return [f"{Path(info.path).name}{'/' if info.is_dir else ''}" for info in found]

    @_one_sentence
    def download(self, version: Version, folder: Path) -> Path:
        """Copies a version's files into `folder`; returns where below it they lie."""
        from mlflow.artifacts import download_artifacts

        # Without dst_path a database's own folder would come back.
        return Path(download_artifacts(artifact_uri=version.source, dst_path=str(folder), tracking_uri=self.uri))


def _version(found: Any) -> Version:
    """MLflow's version as ours; its number is an int from a database, a text from a server."""
    return Version(
        found.name, int(found.version), found.source, found.run_id or "", dict(found.tags), tuple(found.aliases)
    )


def _key(name: str) -> str:
    """A name with MLflow's letters only; a file's path may have others."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)


def _batches(items: list[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
