"""MLflow's model versions, with their tags, aliases and files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.registry import artifact_store, places
from pipeline.registry.refusals import one_sentence


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
class Versions:
    """The model versions of a store. Every method raises ConnectionError when MLflow refuses or does not answer."""

    uri: str
    client: Any
    """MLflow's client."""

    @one_sentence
    def tagged(self, name: str, tag: str, digest: str) -> list[Version]:
        """The versions of a model whose tag `tag` has the value `digest`, the oldest first."""
        found = self.client.search_model_versions(f"tags.`{tag}` = '{digest}'")  # a name may need quotes in a filter
        return sorted((_version(v) for v in found if v.name == name), key=lambda version: version.number)

    @one_sentence
    def by_alias(self, name: str, alias: str) -> Version:
        """The version that an alias points at."""
        return _version(self.client.get_model_version_by_alias(name, alias))

    @one_sentence
    def by_number(self, name: str, number: int) -> Version:
        """A version by its number."""
        return _version(self.client.get_model_version(name, str(number)))

    @one_sentence
    def aliases(self, name: str) -> dict[str, Version]:
        """Maps the aliases of a model to their versions; {} if there is no such model."""
        from mlflow.exceptions import MlflowException

        try:
            model = self.client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}
        return {alias: self.by_number(name, int(number)) for alias, number in model.aliases.items()}

    @one_sentence
    def create(self, name: str, source: str, run_id: str, tags: Mapping[str, str]) -> Version:
        """Registers the artifacts at `source` as a new version, and the model's name if it is new."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        return _version(self.client.create_model_version(name, source, run_id, tags=dict(tags)))

    @one_sentence
    def delete(self, version: Version) -> None:
        """Takes a version out of the registry; its run stays."""
        self.client.delete_model_version(version.name, str(version.number))

    @one_sentence
    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        """Sets tags of a version."""
        for key, value in tags.items():
            self.client.set_model_version_tag(version.name, str(version.number), key, value)

    @one_sentence
    def set_alias(self, version: Version, alias: str) -> None:
        """Points an alias at a version."""
        self.client.set_registered_model_alias(version.name, alias, str(version.number))

    @one_sentence
    def files(self, source: str) -> list[str]:
        """The names of the files at a version's source, without downloading them; a folder's name ends with a slash."""
        with artifact_store.access(self.uri, places.present(source), "read") as repository:
            found = repository.list_artifacts()
        return [f"{Path(info.path).name}{'/' if info.is_dir else ''}" for info in found]

    @one_sentence
    def download(self, source: str, folder: Path) -> None:
        """Copies the files at a version's source into `folder`."""
        with artifact_store.access(self.uri, places.present(source), "read") as repository:
            repository.download_artifacts("", str(folder))


def _version(found: Any) -> Version:
    """MLflow's record as a `Version`. Its number is an int from a database, a text from a server."""
    return Version(
        name=found.name,
        number=int(found.version),
        source=found.source,
        run_id=found.run_id or "",
        tags=dict(found.tags),
        aliases=tuple(found.aliases),
    )
