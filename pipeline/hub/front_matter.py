"""The front matter of a model card, from which the hub makes the page's links, filters and pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import metadata_load
from huggingface_hub.utils import validate_repo_id

TAGS = ("diffusers", "text-to-image", "lora", "flow-matching", "distillation", "few-step")


@dataclass(frozen=True)
class Licence:
    """A licence as the hub knows it.

    Attributes:
        id: The hub's identifier, such as apache-2.0; "other" for a licence without one.
        name: Of a licence "other".
        link: Of a licence "other".
    """

    id: str
    name: str | None = None
    link: str | None = None


@dataclass(frozen=True)
class Picture:
    """A picture of the card: its file below the folder, and the prompt that it was made from."""

    file: str
    prompt: str


def check_repository(key: str, name: str | None) -> str:
    """The name of a repository of the hub. Raises ValueError, which names `key`, unless it is owner/name."""
    try:
        validate_repo_id(name)
        fits = name is not None and name.count("/") == 1
    except (HFValidationError, TypeError):
        fits = False
    if name is None or not fits:
        raise ValueError(f"{key} must name a repository of the hub, owner/name, got {name}")
    return name


def licence_of(base: Path, base_model: str, identifier: str, name: str | None, link: str | None) -> Licence:
    """The licence of adapters, which is their base's.

    Args:
        base: The base model's folder, whose README.md says the name and the link of a licence without identifier.
        base_model: Its repository on the hub.
        identifier: The hub's identifier of the licence.
        name: In place of the README's name.
        link: In place of the README's link.

    Raises:
        ValueError: The licence is "other", and its name or its link is unknown.
    """
    if identifier != "other":
        return Licence(identifier)
    card = base / "README.md"
    said = (metadata_load(card) if card.is_file() else None) or {}
    found = {"name": name or said.get("license_name"), "link": link or said.get("license_link")}
    for key, value in found.items():
        if not value:
            raise ValueError(
                f"--license-{key} must give the {key} of the base's licence, since {card} says `other` without it"
            )
    link = str(found["link"])
    if "://" not in link:  # a file of the base's repository
        link = f"https://huggingface.co/{base_model}/blob/main/{link}"
    return Licence("other", str(found["name"]), link)


def data(base_model: str, licence: Licence, pictures: Sequence[Picture]) -> ModelCardData:
    """The front matter of a bundle's card."""
    return ModelCardData(
        base_model=base_model,
        base_model_relation="adapter",
        library_name="diffusers",
        license=licence.id,
        license_name=licence.name,
        license_link=licence.link,
        pipeline_tag="text-to-image",
        tags=list(TAGS),
        widget=[{"text": one.prompt, "output": {"url": one.file}} for one in pictures] or None,
    )
