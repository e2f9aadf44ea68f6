"""[edge] Gets a teacher's files from the Hugging Face hub, at a pinned revision."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

PATTERNS = ["model_index.json", "README.md", "LICENSE*", "*/*"]  # not the single-file checkpoints beside the folders


def fetch(hub: str, path: str | Path) -> Path:
    """Downloads a diffusers pipeline directory; an interrupted download goes on where it stopped.

    Args:
        hub: "owner/name@revision".
        path: The folder, which must not be there; it appears whole.

    Returns:
        The folder.

    Raises:
        ValueError: The folder is there already, or the hub refuses or does not answer; the message has the mend.
    """
    path = Path(path)
    repository, _, revision = hub.partition("@")
    if path.exists():
        raise ValueError(f"teacher.path: {path} is there already; remove it to fetch {hub} anew")
    partial = path.with_name(f".{path.name}.partial")
    try:
        snapshot_download(repository, revision=revision, local_dir=partial, allow_patterns=PATTERNS)
    except GatedRepoError as error:
        page = f"huggingface.co/{repository}"
        raise ValueError(f"{repository} is gated: accept its licence at {page}, then run `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise ValueError(f"teacher.hub: {repository} has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        mend = "correct the name, or run `hf auth login` if it is private"
        raise ValueError(f"teacher.hub: the hub has no {repository} for you; {mend}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as error:
        mend = f"go online, or copy the folder to {path} yourself"
        raise ValueError(f"the hub does not answer for {repository}: {mend}") from error
    except HfHubHTTPError as error:
        raise ValueError(f"the hub refuses {repository}: {' '.join(str(error).split())[:200]}") from error
    return partial.rename(path)
