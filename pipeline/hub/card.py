"""The model card of a repository: the bundle's own card, with pictures, measured numbers and its origin."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from huggingface_hub import ModelCard

from pipeline.bundle.manifest import Bundle, Retention
from pipeline.hub.front_matter import Licence, Picture, data

FRONT = re.compile(r"\s*---\n.*?\n---\n", re.DOTALL)
PLACE = 'folder = "."  # of this card'  # the line of the bundle's card that says where the adapters are
GALLERY = "<Gallery />"  # the hub shows the pictures of the front matter here


@dataclass(frozen=True, kw_only=True)
class Release:
    """What a repository says beside the bundle's own files.

    Attributes:
        base_model: The base's repository on the hub, owner/name.
        licence: Of the base, and so of the adapters.
        digest: The bundle's.
        version: The bundle's version in the registry, models:/name/version; None = it is not registered.
        repository: Where the folder is uploaded to, owner/name; None = unknown.
        measured: A table of Markdown, or None.
        retention: What the contract of the repository says of the score, or None.
    """

    base_model: str
    licence: Licence
    digest: str
    version: str | None = None
    repository: str | None = None
    measured: str | None = None
    retention: Retention | None = None


def text(own: str, bundle: Bundle, release: Release, pictures: Sequence[Picture]) -> str:
    """The card.

    Args:
        own: The card in the bundle's folder.
        bundle: The bundle.
        release: What the card says in addition.
        pictures: The pictures in the folder.

    Raises:
        ValueError: The front matter does not read back as it was meant.
    """
    heading, _, rest = _named(FRONT.sub("", own, count=1).strip(), bundle, release).partition("\n")
    parts = [heading, GALLERY if pictures else "", rest.strip()]
    parts += ["## Measured", release.measured] if release.measured else []
    parts += ["## Origin", _origin(release)]
    front = data(release.base_model, release.licence, pictures)
    made = f"---\n{front.to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"
    if ModelCard(made).data.to_dict() != front.to_dict():
        raise ValueError(
            "the card's front matter does not read back as it was meant: a prompt or a name is no plain text"
        )
    return made


def _named(body: str, bundle: Bundle, release: Release) -> str:
    """The bundle's text with repositories of the hub in place of local folders."""
    base = re.compile(rf"(?<![\w./-]){re.escape(bundle.base_model)}(?![\w/-])")
    body = base.sub(lambda match: release.base_model, body)
    return body.replace(PLACE, f'folder = "{release.repository}"') if release.repository else body


def _origin(release: Release) -> str:
    registered = f", registered as `{release.version}`" if release.version else ""
    added = ", with the measured retention in the contract" if release.retention else ""
    return (
        f"The adapters, `glance.json` and `adapter_config.json` are those of the bundle with the digest "
        f"`{release.digest}`{registered}{added}. The folder of this card is a bundle too: "
        "`glance generate --bundle FOLDER` makes images with it."
    )
