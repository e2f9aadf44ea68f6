"""Downloads a version, whole or not at all."""

from pathlib import Path

from pipeline import artifacts
from pipeline.artifacts import atomic_dir
from pipeline.registry import places
from pipeline.registry.connection import connect
from pipeline.registry.lock import locked
from pipeline.registry.references import find, parse
from pipeline.registry.verifying import download, registered_digest


def pull(reference: str, target: Path | None = None) -> Path:
    """Downloads a version, checks its bytes and moves it into place whole.

    Args:
        reference: `models:/name@alias` or `models:/name/version`.
        target: The folder to make; None = a folder under `$DVC_ROOT/.glance/bundles`, named by the digest.

    Returns:
        The folder. A folder that holds these bytes already is left alone.

    Raises:
        ValueError: The version holds files that no bundle has, its bytes differ from the registered ones, or `target`
            holds something else.
        ConnectionError: There is no such version, or the server is down.
    """
    from pipeline.bundle.manifest import bundle_digest

    parse(reference)
    store = connect()
    version = find(store, reference)
    digest = registered_digest(version)
    if target is None:
        target = places.home() / "bundles" / digest.removeprefix("sha256:")
    with locked():  # of two pulls into one folder, the second finds the finished folder
        if target.exists():
            if target.is_dir() and artifacts.files(target) and bundle_digest(target) == digest:
                return target
            raise ValueError(f"{target} exists and is not {version}: remove it, or name another folder")
        with atomic_dir(target) as partial:
            download(store, str(version), version.source, digest, partial)
    return target
