"""MLflow's runs: the numbers, texts and files that a registration writes."""

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

from pipeline import artifacts
from pipeline.artifacts import digest_of, dvc_root, read_json, write_json
from pipeline.registry import artifact_store, places
from pipeline.registry.refusals import one_sentence

BATCH = {"params": 100, "metrics": 1000, "tags": 100}  # entries that one request may carry
REGISTRATION = "registration"  # tag that holds the registration's id

T = TypeVar("T")


class Metric(NamedTuple):
    """One number of a run; `step` is the train step of a history, 0 for a lone number."""

    key: str
    value: float
    step: int = 0


@dataclass(kw_only=True)
class Runs:
    """The runs of a store. Every method raises ConnectionError when MLflow refuses or does not answer."""

    uri: str
    client: Any
    """MLflow's client."""
    tags: dict[str, str] = field(default_factory=dict)
    """Tags of every run from now on."""

    @one_sentence
    def begin(self, experiment_id: str) -> None:
        """Begins a registration: tags its runs with a new id, and ends the runs of an earlier killed registration.

        The caller holds the lock, so no earlier registration is running. Each id is saved before the first run.
        """
        store = self.uri.replace(str(dvc_root()), "")  # a moved project keeps the same key
        file = places.home() / "registrations" / f"{digest_of(store)[:12]}.json"
        if file.exists():
            last = read_json(file)
            left = f"tags.{REGISTRATION} = '{last[REGISTRATION]}' and attributes.status = 'RUNNING'"
            for run in self.client.search_runs([last["experiment_id"]], left):
                self.client.set_terminated(run.info.run_id, "KILLED")
        self.tags = {REGISTRATION: uuid4().hex}
        write_json(file, {"experiment_id": experiment_id, **self.tags})

    @contextmanager
    def started(self, experiment_id: str, name: str, parent: str | None = None) -> Iterator[str]:
        """Starts a run and yields its id; the run ends as finished, failed or killed, like the body of the `with`."""
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

    @one_sentence
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
                self.client.log_batch(run_id, **{kind: batch})

    @one_sentence
    def log_files(self, run_id: str, files: Mapping[Path, str]) -> None:
        """Copies files into a run's artifacts; each value is the target folder there, "." the root."""
        with artifact_store.access(self.uri, self._place(run_id), "written") as repository:
            for file, folder in files.items():
                repository.log_artifact(str(file), None if folder == "." else folder)

    @one_sentence
    def log_folder(self, run_id: str, source: Path, folder: str) -> str:
        """Copies a folder's files into a run's artifacts as `folder`; returns its URI."""
        place = self._place(run_id)
        with artifact_store.access(self.uri, place, "written") as repository:
            for name in artifacts.files(source):
                repository.log_artifact(str(source / name), (Path(folder) / name).parent.as_posix())
        return f"{place.rstrip('/')}/{folder}"

    @one_sentence
    def _start(self, experiment_id: str, name: str, parent: str | None) -> str:
        tags = self.tags | ({"mlflow.parentRunId": parent} if parent else {})
        return self.client.create_run(experiment_id, run_name=name, tags=tags).info.run_id

    @one_sentence
    def _end(self, run_id: str, status: str) -> None:
        self.client.set_terminated(run_id, status)

    def _place(self, run_id: str) -> str:
        """Where to write a run's artifacts: never in the old folder of a moved or copied project."""
        return places.own(self.client.get_run(run_id).info.artifact_uri)


def _key(name: str) -> str:
    """A name with only the characters that MLflow allows; a file's path may have others."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)


def _batches(items: list[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
