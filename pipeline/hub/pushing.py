"""Uploads a folder to a repository of the hub, in one commit."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from pipeline.artifacts import files
from pipeline.bundle.manifest import SUFFIX
from pipeline.hub.card import Release
from pipeline.hub.folder import IMAGES

OTHER_TYPES = ("dataset", "space")


def token() -> str:
    """The token of HF_TOKEN or of the login. Raises ValueError without one."""
    found = get_token()
    if not found:
        raise ValueError("push needs a token that may write to the hub: set HF_TOKEN, or run `hf auth login`")
    return found


def message(release: Release) -> str:
    """The commit's message: the version or the digest as title, both below it."""
    named = release.version or f"the bundle {release.digest[:15]}"
    return f"Publish {named}\n\nversion: {release.version or 'not registered'}\ndigest: {release.digest}"


def push(
    api: HfApi, repository: str, folder: Path, message: str, *, private: bool = False, revision: str | None = None
) -> str:
    """Makes the repository if it is new, and uploads the folder's files in one commit.

    The commit also deletes the adapters and pictures of an earlier push that the folder does not have.

    Args:
        api: The hub, with the token.
        repository: owner/name of a model.
        folder: What to upload.
        message: The commit's message: its first line is the title.
        private: Whether a new repository is private; an existing one stays as it is.
        revision: The branch, which is made if it is new; None = main.

    Returns:
        The commit's address.

    Raises:
        ValueError: The hub does not answer or refuses, the token may not write there, or a dataset or a Space has this
            name.
    """
    with _refusals(api, repository):
        if not api.repo_exists(repository):
            for kind in OTHER_TYPES:
                if api.repo_exists(repository, repo_type=kind):
                    raise ValueError(f"REPO_ID must be a model of the hub, and {repository} is a {kind}: name another")
            api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        there = api.list_repo_files(repository, revision=revision)
        names = files(folder)
        title, _, description = message.partition("\n")
        done = api.create_commit(  # `upload_folder` makes several commits where its newest transfer is installed
            repository,
            [
                *(CommitOperationDelete(name) for name in _outdated(there, names)),
                *(CommitOperationAdd(name, folder / name) for name in names),
            ],
            commit_message=title,
            commit_description=description.strip(),
            revision=revision,
        )
    return done.commit_url


def _outdated(there: Sequence[str], names: Sequence[str]) -> list[str]:
    """The files of a repository that an earlier push wrote and this one does not."""
    kinds = [name for name in there if name.startswith(f"{IMAGES}/") or ("/" not in name and name.endswith(SUFFIX))]
    return sorted(set(kinds) - set(names))


@contextmanager
def _refusals(api: HfApi, repository: str) -> Iterator[None]:
    """Says in one sentence what the hub refuses, without the token."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ValueError("push needs the hub, and HF_HUB_OFFLINE is set: unset it") from error
    except RevisionNotFoundError as error:
        raise ValueError(f"{repository} has no such revision: {_said(error, api)}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401 and not isinstance(error, RepositoryNotFoundError):
            raise ValueError("the hub does not know the token: set HF_TOKEN anew, or run `hf auth login`") from error
        if status in (401, 403, 404):
            fix = "take a token that may write there, or correct the name"
            raise ValueError(f"the token may not write to {repository} of the hub: {fix}") from error
        raise ValueError(f"the hub refuses {repository}: {_said(error, api)}") from error
    except HTTPError as error:  # no answer at all
        raise ValueError(f"the hub does not answer at {api.endpoint}: go online ({_said(error, api)})") from error
    except RuntimeError as error:  # of one of the threads that upload large files
        raise ValueError(f"the upload to {repository} broke off: {_said(error.__cause__ or error, api)}") from error
    except ValueError as error:
        raise ValueError(_said(error, api)) from error


def _said(error: BaseException, api: HfApi) -> str:
    """The error's text on one line, not too long."""
    said = " ".join(str(error).split())
    return said.replace(str(api.token), "TOKEN")[:300]
