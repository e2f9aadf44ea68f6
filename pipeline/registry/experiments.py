"""MLflow's experiments, which hold the runs of a model; checks that a registration can write to them."""

import os
import shlex
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from pipeline.artifacts import dvc_root
from pipeline.registry import artifact_store, places
from pipeline.registry.places import public_uri
from pipeline.registry.refusals import one_sentence

BUSY_S = 20.0  # seconds to wait for another writer of a sqlite file
PLACES = (  # the columns of MLflow's tables that hold paths of files
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


@dataclass(frozen=True, kw_only=True)
class Experiments:
    """The experiments of a store. Every method raises ConnectionError when MLflow refuses or does not answer."""

    uri: str
    client: Any
    """MLflow's client."""

    @one_sentence
    def ensure(self, name: str) -> str:
        """The id of an experiment, which is created if missing; raises ConnectionError also for a deleted one.

        A database's artifacts lie under `$DVC_ROOT`; in a temporary working directory they would get lost.
        """
        found = self._found(name)
        self._try_database()
        if found is not None:
            if places.own(found.artifact_location) != found.artifact_location:
                self._follow()
            return found.experiment_id
        return self.client.create_experiment(name, artifact_location=self._default_place())

    @one_sentence
    def probe(self, name: str) -> None:
        """Tries what a registration needs: to write the database, and to write and read artifacts of the experiment.

        The trial leaves nothing behind. For an experiment that a server does not have yet, artifacts cannot be tried.
        """
        found = self._found(name)
        self._try_database()
        place = self._default_place() if found is None else places.own(found.artifact_location)
        if place is None:
            return
        with TemporaryDirectory(dir=places.home(), prefix=".probe-") as scratch:
            file, back = Path(scratch, f".probe-{uuid4().hex}.json"), Path(scratch, "back")
            file.write_text(file.name, encoding="utf-8")
            back.mkdir()
            with artifact_store.access(self.uri, place, "written") as repository:
                repository.log_artifact(str(file))
                repository.download_artifacts(file.name, str(back))
                with suppress(Exception):  # a server may forbid deletion, which a registration does not need
                    repository.delete_artifacts(file.name)

    def _found(self, name: str) -> Any:
        """MLflow's record of an experiment, or None; raises ConnectionError if the experiment is unusable."""
        found, uri = self.client.get_experiment_by_name(name), public_uri(self.uri)
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
        """Updates the paths in a database that moved with its project, for MLflow's own page.

        MLflow has no call for this update. The tables fit the installed version, or `connect` would have failed.
        """
        file = places.database_file(self.uri)
        if file is None or not file.is_relative_to(dvc_root()):
            return
        places.files().mkdir(exist_ok=True)  # files that are not there keep their old path
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
        """Where the files of a new experiment go; None = the server decides."""
        local = not self.uri.startswith(("http://", "https://", "databricks"))
        return places.files().as_uri() if local else None
