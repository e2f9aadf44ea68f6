"""Reads the files of a version back and compares them with the registered digest.

A download is data, never code: an unexpected file is refused before it is read.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline import artifacts
from pipeline.registry import places
from pipeline.registry.connection import Store
from pipeline.registry.references import CANDIDATE, CHAMPION
from pipeline.registry.versions import Version

DIGEST = "bundle_digest"  # the tag of a version
SUFFIXES = (".safetensors", ".json", ".md")  # files of a bundle: nothing that runs when it is read


def verify(store: Store, version: Version) -> None:
    """Reads a version's files back.

    Raises:
        ValueError: The files are gone, or differ from the registered ones.
        ConnectionError: The artifact store cannot be read.
    """
    with TemporaryDirectory(dir=places.home(), prefix=".verify-") as scratch:
        download(store, str(version), version.source, registered_digest(version), Path(scratch))


def lost(store: Store, name: str) -> dict[str, str]:
    """Faults in the files of a model's candidate and champion, each with its fix; {} if all files are in place.

    Raises:
        ConnectionError: The store refuses.
    """
    wrong, versions = {}, store.versions.aliases(name)
    for alias, advice in (
        (CANDIDATE, "run `glance register`"),
        (CHAMPION, "register the champion's bundle anew and promote it, or promote another version"),
    ):
        if alias in versions:
            try:
                verify(store, versions[alias])
            except (ValueError, OSError) as error:
                wrong[f"the {alias}: {error}"] = advice
    return wrong


def registered_digest(version: Version) -> str:
    """The bundle digest of a version, from its tag; raises ValueError if the version has no such tag."""
    digest = version.tags.get(DIGEST)
    if digest is None:
        raise ValueError(f"{version} has no tag {DIGEST}: it was not registered by this pipeline")
    return digest


def download(store: Store, owner: str, source: str, digest: str, folder: Path) -> None:
    """Copies the files at a version's source into a folder, and compares them with a digest.

    Args:
        store: Where the version is registered.
        owner: The version in words, for messages.
        source: The URI of the files.
        digest: The registered digest of the bundle.
        folder: An empty folder.

    Raises:
        ValueError: There are no files, a file belongs in no bundle, or the digest differs.
        ConnectionError: The artifact store cannot be read.
    """
    from pipeline.bundle.manifest import bundle_digest

    names = store.versions.files(source)
    if not names:
        place = places.present(source)
        raise ValueError(
            f"{owner} holds no files: nothing is at {places.folder(place) or places.public_uri(place)}; register its"
            " bundle again"
        )
    _check_names(owner, names)
    store.versions.download(source, folder)
    check_files(owner, folder)
    got = bundle_digest(folder)
    if got != digest:
        raise ValueError(f"{owner} does not match its digest: registered as {digest}, downloaded {got}")
    for path in [path for path in folder.iterdir() if artifacts.foreign(path.name)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_files(owner: str, folder: Path) -> None:
    """Refuses a folder with files that no bundle has.

    Args:
        owner: What the folder belongs to, for messages.
        folder: The folder of a bundle.

    Raises:
        ValueError: There is no file, or a file that is not safetensors, json or md.
    """
    files = folder.iterdir()
    _check_names(owner, [f"{p.name}{'@' if p.is_symlink() else '/' if p.is_dir() else ''}" for p in files])


def _check_names(owner: str, names: Iterable[str]) -> None:
    """As `check_files`, from names alone, so that pickles, programs and hidden files in a download are never read.

    A folder's name ends with a slash, and a link's with an @.
    """
    names = sorted(name for name in names if not artifacts.foreign(name.rstrip("/@")))
    if not names:
        raise ValueError(f"{owner} holds no files")
    for name in names:
        if not name.endswith(SUFFIXES):
            raise ValueError(f"{owner} holds {name}; a bundle has only {', '.join(SUFFIXES)} files")
