"""The MLflow store behind the registry; the only module that imports mlflow.

A store is sqlite under `$DVC_ROOT/.glance` unless MLFLOW_TRACKING_URI names another. MLflow is imported on the first
connection: it costs more than a second. Whatever goes wrong in it leaves here as one sentence.
"""

import errno
import functools
import logging
import os
import re
import shlex
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

from filelock import FileLock, Timeout

from pipeline import artifacts
from pipeline.artifacts import digest_of, dvc_root, read_json, write_json
from pipeline.registry import places
from pipeline.registry.places import public_uri, tracking_uri

PING_S = 5.0  # seconds a server has to answer at all
BUSY_S = 20.0  # seconds to wait for another writer of a sqlite file
LOCK_S = 900.0  # seconds to wait for another registration on this machine
BATCH = {"params": 100, "metrics": 1000, "tags": 100}  # what one request may carry
REGISTRATION = "registration"  # the tag of the runs of one registration
PLACES = (  # where MLflow's tables hold places of files
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
DRIVERS = {  # what to install for a module that a database or an artifact store needs, where the names differ
    "MySQLdb": "mysqlclient",
    "azure": "azure-storage-blob",
    "google": "google-cloud-storage",
    "psycopg": "psycopg[binary]",
    "psycopg2": "psycopg2-binary",
}
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


@contextmanager
def locked() -> Iterator[None]:
    """Holds the project's registry lock: MLflow's sqlite does not survive being initialised twice at once.

    Raises:
        TimeoutError: Another process kept the lock too long.
    """
    path = places.home() / "mlflow.lock"
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
        ConnectionError: The URI names no store that lasts, nobody answers there, the database cannot be opened or is
            another MLflow's, a database's driver is not installed, or the store refuses.
    """
    uri = places.anchored(uri) if uri else tracking_uri()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.pop("MLFLOW_RUN_ID", None)  # it would override the run that is meant
    if uri.startswith(("http://", "https://")):
        _ping(uri)
    for noisy in ("alembic", "mlflow.tracking", "mlflow.system_metrics"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # prints the traceback of what it raises
    with locked():
        return _open(uri)


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
    """Turns the exceptions of MLflow and its database, which carry whole server pages, into one sentence."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> T:
        from alembic.util import CommandError
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return function(*args, **kwargs)
        except (MlflowException, SQLAlchemyError, CommandError) as error:
            uri = args[0].uri if isinstance(args[0], Store) else args[0]
            raise ConnectionError(f"MLflow at {public_uri(uri)} refused: {_first_line(error)}") from error

    return wrapped


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return public_uri(lines[0])[:300]


def _reason(error: Exception) -> str:
    """Why an artifact store failed: a download tells it below a headline."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return public_uri(lines[-1])[:300] if "failures occurred" in "".join(lines[:1]) else _first_line(error)


def _missing(what: str, error: ImportError) -> ConnectionError:
    module = (error.name or str(error)).partition(".")[0]
    package = DRIVERS.get(module, module)
    return ConnectionError(f"{what} needs the Python package {package}: pip install {shlex.quote(package)}")


@_one_sentence
def _open(uri: str) -> "Store":
    import mlflow
    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException
    from mlflow.store.db.db_types import DATABASE_ENGINES

    if uri.startswith(tuple(DATABASE_ENGINES)):
        _check_database(uri)
    address = _without_slashes(uri)
    try:
        client = mlflow.MlflowClient(tracking_uri=address, registry_uri=address)
        client.search_experiments(max_results=1)  # makes the tables
        client.search_registered_models(max_results=1)
    except (MlflowException, CommandError) as error:
        if not isinstance(error, CommandError) and "database schema" not in str(error):
            raise
        raise ConnectionError(
            f"the tables of {public_uri(uri)} belong to another MLflow than the installed {mlflow.__version__}: install"
            f" that one, or if it is older, save a copy of the database and run `mlflow db upgrade {public_uri(uri)}`"
        ) from error
    return Store(uri, client)


def _check_database(uri: str) -> None:
    """Opens a database once; MLflow alone would try for minutes.

    Raises:
        ConnectionError: It cannot be opened, or its driver is not installed.
    """
    from mlflow.store.db.utils import create_sqlalchemy_engine
    from sqlalchemy import inspect
    from sqlalchemy.exc import SQLAlchemyError

    file = places.database_file(uri)
    try:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        engine = create_sqlalchemy_engine(uri)
        try:
            inspect(engine).get_table_names()
        finally:
            engine.dispose()
    except ImportError as error:
        raise _missing(f"the database {public_uri(uri)}", error) from error
    except (SQLAlchemyError, OSError) as error:
        named = os.environ.get("MLFLOW_TRACKING_URI")
        advice = "correct or unset MLFLOW_TRACKING_URI" if named else "restore it, or move it away to begin a new one"
        raise ConnectionError(
            f"the database {file or public_uri(uri)} cannot be opened ({_first_line(error)}): {advice}"
        ) from error


def _without_slashes(uri: str) -> str:
    """A sqlite URI with quoted letters, its slashes quoted too: MLflow makes the folder of the path as it is quoted."""
    if not uri.startswith("sqlite") or "%" not in uri:
        return uri
    head, path = uri.split(":///", 1)
    file, *options = path.split("?", 1)
    return "?".join([f"{head}:///{file.replace('/', '%2F')}", *options])


class Store:
    """Runs and model versions of one MLflow server or database; made by `connect`.

    Every method raises ConnectionError when MLflow refuses or is gone.
    """

    def __init__(self, uri: str, client: Any) -> None:
        self.uri = uri
        self._client = client
        self._tags: dict[str, str] = {}  # of every run

    @_one_sentence
    def experiment(self, name: str) -> str:
        """The id of an experiment, made if missing; raises ConnectionError if it is deleted, too.

        A database's artifacts lie under `$DVC_ROOT`, or they would go with a temporary working directory.
        """
        found = self._experiment(name)
        self._try_database()
        if found is not None:
            if places.own(found.artifact_location) != found.artifact_location:
                self._follow()
            return found.experiment_id
        return self._client.create_experiment(name, artifact_location=self._default_place())

    def _experiment(self, name: str) -> Any:
        found, uri = self._client.get_experiment_by_name(name), public_uri(self.uri)
        if found is None:
            return None
        if found.lifecycle_stage == "deleted":
            known = os.environ.get("MLFLOW_TRACKING_URI") == self.uri
            setting = "" if known else f"MLFLOW_TRACKING_URI={shlex.quote(uri)} "
            raise ConnectionError(
                f"the experiment {name} of MLflow at {uri} is deleted: restore it with"
                f" `{setting}mlflow experiments restore --experiment-id {found.experiment_id}`"
            )
        place = places.folder(places.own(found.artifact_location))
        if place is not None and not place.is_relative_to(places.home()) and not place.parent.is_dir():
            raise ConnectionError(
                f"the experiment {name} of MLflow at {uri} keeps its files in {place}, which is not on this machine:"
                " make that folder, or let the server take the files (mlflow server --artifacts-destination)"
            )
        return found

    def _follow(self) -> None:
        """Makes the records of a database that moved with its project name the new places, for MLflow's own page.

        MLflow has no call for that. The tables are those of the installed version, or `connect` would have failed.
        """
        file = places.database_file(self.uri)
        if file is None or not file.is_relative_to(dvc_root()):
            return
        places.files().mkdir(exist_ok=True)  # what is not there keeps its old place
        with closing(sqlite3.connect(file, timeout=BUSY_S)) as database, database:
            database.create_function("present", 1, places.present)
            for table, column in PLACES:
                database.execute(f"UPDATE {table} SET {column} = present({column}) WHERE {column} IS NOT NULL")

    def _try_database(self) -> None:
        """Raises ConnectionError if a sqlite file cannot be written; MLflow's own message does not name the file."""
        file = places.database_file(self.uri)
        if file is None:
            return
        try:
            with closing(sqlite3.connect(file, timeout=BUSY_S, isolation_level=None)) as database:
                for statement in ("BEGIN IMMEDIATE", "CREATE TABLE probe (x)", "ROLLBACK"):
                    database.execute(statement)
        except sqlite3.Error as error:
            raise ConnectionError(
                f"the database {file} cannot be written ({error}): let this user write the file and its folder"
            ) from error

    def _default_place(self) -> str | None:
        """Where the files of a new experiment go; None = where the server has them."""
        local = not self.uri.startswith(("http://", "https://", "databricks"))
        return places.files().as_uri() if local else None

    @_one_sentence
    def begin(self, experiment_id: str) -> None:
        """Begins a registration: its runs bear its id, and the runs of one that was killed before it are ended.

        The caller holds the lock, so that the one before it is over. Its id was written down before its first run.
        """
        store = self.uri.replace(str(dvc_root()), "")  # a project that moves keeps the name
        file = places.home() / "registrations" / f"{digest_of(store)[:12]}.json"
        if file.exists():
            last = read_json(file)
            left = f"tags.{REGISTRATION} = '{last[REGISTRATION]}' and attributes.status = 'RUNNING'"
            for run in self._client.search_runs([last["experiment_id"]], left):
                self._client.set_terminated(run.info.run_id, "KILLED")
        self._tags = {REGISTRATION: uuid4().hex}
        write_json(file, {"experiment_id": experiment_id, **self._tags})

    @_one_sentence
    def probe(self, name: str) -> None:
        """Tries what a registration in an experiment needs: to write its database, to write and read its artifacts.

        Nothing of it stays. An experiment that a server does not have yet has no place to try.
        """
        found = self._experiment(name)
        self._try_database()
        place = self._default_place() if found is None else places.own(found.artifact_location)
        if place is None:
            return
        with TemporaryDirectory(dir=places.home(), prefix=".probe-") as scratch:
            file, back = Path(scratch, f".probe-{uuid4().hex}.json"), Path(scratch, "back")
            file.write_text(file.name, encoding="utf-8")
            back.mkdir()
            with self._artifacts(place, "written") as store:
                store.log_artifact(str(file))
                store.download_artifacts(file.name, str(back))
                with suppress(Exception):  # a server may forbid it, and a registration deletes nothing
                    store.delete_artifacts(file.name)

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
        tags = self._tags | ({"mlflow.parentRunId": parent} if parent else {})
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
        with self._artifacts(self._place(run_id), "written") as store:
            for file, folder in files.items():
                store.log_artifact(str(file), None if folder == "." else folder)

    @_one_sentence
    def log_folder(self, run_id: str, source: Path, folder: str) -> str:
        """Copies a folder's files into a run's artifacts as `folder`; returns its URI."""
        place = self._place(run_id)
        with self._artifacts(place, "written") as store:
            for name in artifacts.files(source):
                store.log_artifact(str(source / name), (Path(folder) / name).parent.as_posix())
        return f"{place.rstrip('/')}/{folder}"

    def _place(self, run_id: str) -> str:
        """Where a run's artifacts are written: never in the folder that a project was moved or copied from."""
        return places.own(self._client.get_run(run_id).info.artifact_uri)

    @contextmanager
    def _artifacts(self, place: str, done: str) -> Iterator[Any]:
        """MLflow's access to the artifacts at `place`, which are to be `done`: "written" or "read".

        Raises:
            ConnectionError: They cannot be; the message names the place.
        """
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
        from mlflow.utils.uri import add_databricks_profile_info_to_artifact_uri

        folder, shown = places.folder(place), public_uri(place)
        try:
            place = add_databricks_profile_info_to_artifact_uri(place, self.uri)
            yield get_artifact_repository(place, tracking_uri=self.uri)
        except ImportError as error:
            raise _missing(f"the artifact store {shown}", error) from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # the full disk is another trouble than the store
            advice = "let this user read and write there" if folder else "check its address and your credentials"
            raise ConnectionError(
                f"the artifact store {folder or shown} cannot be {done} ({_reason(error)}): {advice}"
            ) from error

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
    def aliases(self, name: str) -> dict[str, Version]:
        """The versions of a model that aliases point at; {} where there is no such model."""
        from mlflow.exceptions import MlflowException

        try:
            model = self._client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}
        return {alias: self.by_number(name, int(number)) for alias, number in model.aliases.items()}

    @_one_sentence
    def by_alias(self, name: str, alias: str) -> Version:
        """The version that an alias points at."""
        return _version(self._client.get_model_version_by_alias(name, alias))

    @_one_sentence
    def by_number(self, name: str, number: int) -> Version:
        """A version by its number."""
        return _version(self._client.get_model_version(name, str(number)))

    @_one_sentence
    def files(self, source: str) -> list[str]:
        """The names of the files at a version's source, without downloading them; a folder's name ends with a slash."""
        with self._artifacts(places.present(source), "read") as store:
            found = store.list_artifacts()
        return [f"{Path(info.path).name}{'/' if info.is_dir else ''}" for info in found]

    @_one_sentence
    def download(self, source: str, folder: Path) -> None:
        """Copies the files at a version's source into `folder`."""
        with self._artifacts(places.present(source), "read") as store:
            store.download_artifacts("", str(folder))


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
