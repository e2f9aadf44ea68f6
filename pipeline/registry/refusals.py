"""Turns errors of MLflow, its database and its artifact store into one sentence."""

import functools
import shlex
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline.registry.places import public_uri

DRIVERS = {  # package to install for a driver's module, where the two names differ
    "MySQLdb": "mysqlclient",
    "azure": "azure-storage-blob",
    "google": "google-cloud-storage",
    "psycopg": "psycopg[binary]",
    "psycopg2": "psycopg2-binary",
}

T = TypeVar("T")


def one_sentence(function: Callable[..., T]) -> Callable[..., T]:
    """Turns exceptions of MLflow and its database into a ConnectionError, as they can carry whole server pages.

    Args:
        function: A function whose first argument is the store's URI or has an attribute `uri`.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> T:
        from alembic.util import CommandError
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return function(*args, **kwargs)
        except (MlflowException, SQLAlchemyError, CommandError) as error:
            uri = args[0] if isinstance(args[0], str) else args[0].uri
            raise ConnectionError(f"MLflow at {public_uri(uri)} refused: {first_line(error)}") from error

    return wrapped


def first_line(error: Exception) -> str:
    """The headline of an exception, without a password."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return public_uri(lines[0])[:300]


def reason(error: Exception) -> str:
    """Why an artifact store failed; a download gives the reason below a headline."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return public_uri(lines[-1])[:300] if "failures occurred" in "".join(lines[:1]) else first_line(error)


def missing(what: str, error: ImportError) -> ConnectionError:
    """The error for a database or an artifact store whose driver is not installed, with the package to install."""
    module = (error.name or str(error)).partition(".")[0]
    package = DRIVERS.get(module, module)
    return ConnectionError(f"{what} needs the Python package {package}: pip install {shlex.quote(package)}")
