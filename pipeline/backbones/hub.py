"""Gets a teacher's files from the Hugging Face hub, at a pinned revision."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from pipeline.artifacts import digest_of
from pipeline.styles import Lora

PATTERNS = ["model_index.json", "README.md", "LICENSE*", "*/*"]  # not the single-file checkpoints beside the folders
SCRATCH = Path(".glance") / "downloads"  # not beside the LoRAs: DVC watches their folder


def fetch(hub: str, path: str | Path) -> Path:
    """Downloads a diffusers pipeline directory; an interrupted download goes on where it stopped.

    Args:
        hub: "owner/name@revision".
        path: The folder, which must not exist yet; it appears whole.

    Returns:
        The folder.

    Raises:
        ValueError: The folder is there already, or the hub refuses or does not answer; the message says what to do.
    """
    path = Path(path)
    repository, _, revision = hub.partition("@")
    if path.exists():
        raise ValueError(f"teacher.path: {path} is there already; remove it to fetch {hub} anew")
    partial = path.with_name(f".{path.name}.partial")
    with _refusals("teacher.hub", repository, revision, path):
        snapshot_download(repository, revision=revision, local_dir=partial, allow_patterns=PATTERNS)
    return partial.rename(path)


def fetch_lora(lora: Lora) -> Path:
    """Downloads a LoRA whose file is one of the hub; an interrupted download goes on where it stopped.

    Returns:
        The LoRA's file, which appears whole.

    Raises:
        ValueError: The file is there already, or the hub refuses or does not answer; the message says what to do.
    """
    if lora.hub is None:
        raise ValueError(f"{lora.key} must name owner/name@revision/FILE to fetch it, got {lora.file}")
    if lora.path.exists():
        raise ValueError(f"{lora.path} is there already; remove it to fetch it anew")
    repository, revision, filename = lora.hub["repository"], lora.hub["revision"], lora.hub["filename"]
    scratch = SCRATCH / digest_of(lora.file)
    with _refusals(lora.key, repository, revision, lora.path):
        file = Path(hf_hub_download(repository, filename, revision=revision, local_dir=scratch))
    lora.path.parent.mkdir(parents=True, exist_ok=True)
    file.replace(lora.path)
    shutil.rmtree(scratch)
    return lora.path


@contextmanager
def _refusals(key: str, repository: str, revision: str, path: Path) -> Iterator[None]:
    """Says in one sentence what the hub refuses; the parameter `key` names the repository, `path` is the target."""
    try:
        yield
    except GatedRepoError as error:
        page = f"huggingface.co/{repository}"
        raise ValueError(f"{repository} is gated: accept its licence at {page}, then run `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise ValueError(f"{key}: {repository} has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        fix = "correct the name, or run `hf auth login` if it is private"
        raise ValueError(f"{key}: the hub has no {repository} for you; {fix}") from error
    except RemoteEntryNotFoundError as error:
        raise ValueError(f"{key}: {repository} has no file for {path} at revision {revision}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as error:
        fix = f"go online, or copy {'the folder' if key == 'teacher.hub' else 'the file'} to {path} yourself"
        raise ValueError(f"the hub does not answer for {repository}: {fix}") from error
    except HfHubHTTPError as error:
        raise ValueError(f"the hub refuses {repository}: {' '.join(str(error).split())[:200]}") from error
