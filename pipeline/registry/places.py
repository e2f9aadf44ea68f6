"""Where MLflow's records and files lie, as seen from this project.

Records are in a server or a database, which a tracking URI names. When a run starts, the place of its files is written
into the run's record as an absolute URI. If the project is moved or copied later, this URI still names the old folder.
"""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pipeline.artifacts import dvc_root

FILES = (".glance", "mlartifacts")  # below the root: the files of a database's runs; a server stores its own


def home() -> Path:
    """The folder of the project's own state, under `$DVC_ROOT`."""
    return dvc_root() / ".glance"


def files() -> Path:
    """The folder of the files of a database's runs, under `$DVC_ROOT`."""
    return dvc_root().joinpath(*FILES)


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the sqlite file of the project.

    Raises:
        ConnectionError: MLFLOW_TRACKING_URI names neither a server nor a lasting database.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    return anchored(uri) if uri else _sqlite(home() / "mlflow.db")


def anchored(uri: str) -> str:
    """A tracking URI that means the same in every working directory: a relative sqlite file lies under `$DVC_ROOT`.

    Raises:
        ConnectionError: The URI names neither a server nor a lasting database.
    """
    scheme = urlsplit(uri).scheme
    if re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri):
        raise ConnectionError(f"MLFLOW_TRACKING_URI must begin with http:// or https://, got {uri}: set http://{uri}")
    if scheme == "file" or (not scheme and uri != "databricks"):
        raise ConnectionError(
            f"MLFLOW_TRACKING_URI must be a server (http://host:5000) or a database (sqlite:///file.db), got {uri}:"
            " MLflow registers nothing in a plain folder; unset it to use the project's own database"
        )
    if not scheme.startswith("sqlite"):
        return uri
    file = database_file(uri)
    if file is None:
        raise ConnectionError(f"MLFLOW_TRACKING_URI must name a file, as sqlite:///file.db does, got {uri}")
    return uri if file.is_absolute() else _sqlite(dvc_root() / file)


def database_file(uri: str) -> Path | None:
    """The file of a sqlite database; None for a database in memory and for other stores."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    if not uri.startswith("sqlite"):
        return None
    try:
        database = make_url(uri).database
    except ArgumentError:
        return None
    return Path(database) if database and not database.startswith((":memory:", "file:")) else None


def public_uri(uri: str) -> str:
    """A URI without a user's name and password, for messages and logs."""
    return re.sub(r"://[^/@]*@", "://", uri)


def folder(uri: str) -> Path | None:
    """The folder that a URI names on this machine; None if the URI points elsewhere, as s3://bucket does."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return None if parts.scheme else Path(uri)


def own(uri: str) -> str:
    """The recorded `uri` with the `.glance/mlartifacts` of another root replaced by this project's own."""
    recorded = folder(uri)
    if recorded is None:
        return uri
    for parent in (recorded, *recorded.parents):
        if parent.parts[-2:] == FILES:
            return (files() / recorded.relative_to(parent)).as_uri()
    return uri


def present(uri: str) -> str:
    """Where to read files recorded at `uri`: at `own(uri)` if they are there, else at `uri`."""
    there = folder(own(uri))
    return uri if there is not None and not there.exists() else own(uri)


def _sqlite(file: Path) -> str:
    from sqlalchemy import URL

    return URL.create("sqlite", database=str(file)).render_as_string()
