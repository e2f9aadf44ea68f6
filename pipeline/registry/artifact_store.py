"""MLflow's access to the files of runs and versions."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.registry import places, refusals
from pipeline.registry.places import public_uri


@contextmanager
def access(uri: str, place: str, done: str) -> Iterator[Any]:
    """The artifact repository at a place.

    Args:
        uri: URI of the tracking store that the artifacts belong to.
        place: URI of the folder of the artifacts.
        done: The intended access, "written" or "read", for messages.

    Raises:
        ConnectionError: The access fails; the message names the place.
        OSError: The disk is full.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.utils.uri import add_databricks_profile_info_to_artifact_uri

    folder, shown = places.folder(place), public_uri(place)
    try:
        place = add_databricks_profile_info_to_artifact_uri(place, uri)
        yield get_artifact_repository(place, tracking_uri=uri)
    except ImportError as error:
        raise refusals.missing(f"the artifact store {shown}", error) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # a full disk is no fault of the store
        advice = "let this user read and write there" if folder else "check its address and your credentials"
        raise ConnectionError(
            f"the artifact store {folder or shown} cannot be {done} ({refusals.reason(error)}): {advice}"
        ) from error
