"""Opens an MLflow store, or says in one sentence why the store cannot be opened.

A store is sqlite under `$DVC_ROOT/.glance` unless MLFLOW_TRACKING_URI names another. MLflow is imported on the first
connection, since the import takes more than a second.
"""

import logging
import os
from dataclasses import dataclass
from typing import Any

from pipeline.registry import places, refusals
from pipeline.registry.experiments import Experiments
from pipeline.registry.lock import locked
from pipeline.registry.places import public_uri, tracking_uri
from pipeline.registry.refusals import one_sentence
from pipeline.registry.runs import Runs
from pipeline.registry.versions import Versions

PING_S = 5.0  # seconds within which a server must answer
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the default blocks for minutes when a server is down
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


@dataclass(frozen=True, kw_only=True)
class Store:
    """One MLflow server or database; made by `connect`."""

    client: Any
    """MLflow's client."""
    experiments: Experiments
    runs: Runs
    versions: Versions


def connect(uri: str | None = None) -> Store:
    """Opens the store, and makes it if it is a sqlite file that is not there yet.

    Raises:
        ConnectionError: The URI names no lasting store, no server answers, the database cannot be opened or has the
            tables of another MLflow, a database's driver is not installed, or the store refuses.
    """
    uri = places.anchored(uri) if uri else tracking_uri()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.pop("MLFLOW_RUN_ID", None)  # this variable would override the run ids that are passed
    if uri.startswith(("http://", "https://")):
        _ping(uri)
    for noisy in ("alembic", "mlflow.tracking", "mlflow.system_metrics"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it prints the traceback of what it raises
    with locked():
        client = _open(uri)
    return Store(
        client=client,
        experiments=Experiments(uri=uri, client=client),
        runs=Runs(uri=uri, client=client),
        versions=Versions(uri=uri, client=client),
    )


def _ping(uri: str) -> None:
    import requests  # mlflow's own client library, with its proxies and certificates

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=PING_S)  # any answer will do, even a login page
    except requests.exceptions.SSLError:
        pass  # a server answered; mlflow has its own settings for certificates
    except requests.exceptions.RequestException as error:
        raise ConnectionError(
            f"no MLflow server answers at {public_uri(uri)}: start it, or unset MLFLOW_TRACKING_URI"
        ) from error


@one_sentence
def _open(uri: str) -> Any:
    """MLflow's client of a store, which creates missing tables."""
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
    return client


def _check_database(uri: str) -> None:
    """Opens a database once, since MLflow would retry for minutes.

    Raises:
        ConnectionError: The database cannot be opened, or its driver is not installed.
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
        raise refusals.missing(f"the database {public_uri(uri)}", error) from error
    except (SQLAlchemyError, OSError) as error:
        named = os.environ.get("MLFLOW_TRACKING_URI")
        advice = "correct or unset MLFLOW_TRACKING_URI" if named else "restore it, or move it away to begin a new one"
        raise ConnectionError(
            f"the database {file or public_uri(uri)} cannot be opened ({refusals.first_line(error)}): {advice}"
        ) from error


def _without_slashes(uri: str) -> str:
    """A quoted sqlite URI with its slashes quoted too, since MLflow creates the folder of the path as it is quoted."""
    if not uri.startswith("sqlite") or "%" not in uri:
        return uri
    head, path = uri.split(":///", 1)
    file, *options = path.split("?", 1)
    return "?".join([f"{head}:///{file.replace('/', '%2F')}", *options])
