"""The registered versions of a model, as the page offers them."""

import os
from dataclasses import dataclass

from pipeline.registry import places
from pipeline.registry.connection import connect
from pipeline.registry.verifying import DIGEST
from pipeline.registry.versions import Version


@dataclass(frozen=True)
class Offer:
    """A version that has an alias."""

    reference: str
    """models:/name@alias."""
    title: str


def has_registry() -> bool:
    """Whether there is a store to ask: looking must not make one."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or (places.home() / "mlflow.db").is_file()


def offers(model: str) -> list[Offer]:
    """The aliases of a registered model; [] without a store.

    Raises:
        ConnectionError: The store cannot be opened, or refuses.
    """
    if not has_registry():
        return []
    found = connect().versions.aliases(model)
    return [Offer(f"models:/{model}@{alias}", f"{alias}: {version}") for alias, version in sorted(found.items())]


def with_digest(model: str, digest: str) -> list[Version]:
    """The versions of a model that hold a bundle of this digest; [] without a store. Raises as `offers` does."""
    return connect().versions.tagged(model, DIGEST, digest) if has_registry() else []
