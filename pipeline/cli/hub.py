"""Commands for the Hugging Face hub: card, push."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from pipeline import artifacts
from pipeline.cli.edges import bundle_folder, in_root, one_sentence, refuse_inside, show

if TYPE_CHECKING:
    from pipeline.bundle.manifest import Bundle
    from pipeline.hub.card import Release
    from pipeline.hub.folder import Draw
    from pipeline.params import Params

OPTIONS = (
    click.option(
        "--bundle",
        default=artifacts.BUNDLE.as_posix(),
        show_default=True,
        help="A bundle's folder, models:/name@alias or models:/name/version.",
    ),
    click.option(
        "--evaluation",
        type=click.Path(path_type=Path),
        help="The folder of the bundle's evaluation, for the table of measured numbers.",
    ),
    click.option("--teacher", help="The base model's folder  [default: the folder that the bundle names]"),
    click.option("--base-model", help="The base's repository, owner/name  [default: of teacher.hub in params.yaml]"),
    click.option("--license-name", help="Name of the licence, if it is `other`  [default: of the base's card]"),
    click.option("--license-link", help="Link to the licence, if it is `other`  [default: of the base's card]"),
    click.option(
        "--prompts-file",
        type=click.Path(path_type=Path),
        help="A text file in UTF-8, one prompt per line, for the pictures  [default: the held-out prompts]",
    ),
    click.option("--images", default=4, show_default=True, type=click.IntRange(0, 64), help="Number of pictures."),
    click.option(
        "--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1), help="Of the first picture."
    ),
    click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda."),
)


def _shared(function: Callable) -> Callable:
    for option in reversed(OPTIONS):
        function = option(function)
    return function


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@_shared
@one_sentence
@in_root
def card(out: Path, **options: Any) -> None:
    """Write the folder of a hub repository for a bundle into the new folder OUT, whole or not at all.

    It holds the bundle's files, pictures of held-out prompts and a model card.
    """
    if out.exists():
        raise ValueError(f"OUT must not be there yet, got {out}")
    refuse_inside("OUT", out)
    bundle, release, draw = _prepared(repository=None, **options)

    from pipeline.hub import folder

    with artifacts.atomic_dir(out) as partial:
        files = folder.write(partial, bundle, release, draw)
    for file in files:
        show(out / file)


@click.command()
@click.argument("repo_id")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--revision", help="The branch to commit to, which is made if it is new  [default: main]")
@_shared
@one_sentence
@in_root
def push(repo_id: str, private: bool, revision: str | None, **options: Any) -> None:
    """Upload the folder that `glance card` writes to REPO_ID, owner/name, of the hub, in one commit.

    The token comes from HF_TOKEN or from `hf auth login`.
    """
    from huggingface_hub import HfApi

    from pipeline.hub import folder, front_matter, pushing

    front_matter.check_repository("REPO_ID", repo_id)
    api = HfApi(token=pushing.token())
    bundle, release, draw = _prepared(repository=repo_id, **options)
    with TemporaryDirectory() as scratch:
        folder.write(Path(scratch), bundle, release, draw)
        message = pushing.message(release)
        click.echo(pushing.push(api, repo_id, Path(scratch), message, private=private, revision=revision))


def _prepared(
    *,
    repository: str | None,
    bundle: str,
    evaluation: Path | None,
    teacher: str | None,
    base_model: str | None,
    license_name: str | None,
    license_link: str | None,
    prompts_file: Path | None,
    images: int,
    seed: int,
    device: str,
) -> "tuple[Bundle, Release, Draw]":
    """What both commands put into a folder; everything is checked before the base is loaded."""
    from pipeline import backbones, params
    from pipeline.bundle.manifest import Bundle, Retention, bundle_digest
    from pipeline.hub import folder, front_matter, measured
    from pipeline.hub.card import Release

    values, version = params.load(), _version(bundle)
    place = bundle_folder(version or bundle)  # by its number: an alias may move in between
    loaded = Bundle.load(place)
    digest = bundle_digest(place)
    base = loaded.base(teacher)
    named = base_model or _hub_of(values, base.path)
    if named is None:
        raise ValueError(
            f"--base-model must name the repository of {base.path} on the hub, owner/name: teacher.hub of params.yaml "
            "does not say it"
        )
    named = front_matter.check_repository("--base-model", named)
    release = Release(
        base_model=named,
        licence=front_matter.licence_of(base.path, named, loaded.license, license_name, license_link),
        digest=digest,
        version=version,
        repository=repository,
        measured=None if evaluation is None else measured.table(evaluation, digest),
        retention=None if evaluation is None else Retention.of(measured.of_bundle(evaluation, digest)),
    )
    prompts = _prompts(values, prompts_file, images)
    if not prompts:
        return loaded, release, lambda place: []
    loaded.check_base(teacher)

    def draw(place: Path) -> Any:
        backbone = backbones.load(base, device, offload=values.runtime.offload)
        return folder.drawn(place, loaded, backbone, prompts, seed)

    return loaded, release, draw


def _hub_of(values: "Params", base: Path) -> str | None:
    """The repository that params.yaml names for this folder, without its revision."""
    teacher = values.teacher
    same = Path(teacher.path).resolve() == base.resolve()
    return teacher.hub.partition("@")[0] if same and teacher.hub else None


def _version(bundle: str) -> str | None:
    """The version in the registry that a reference stands for, models:/name/version."""
    if not bundle.startswith("models:"):
        return None

    from pipeline.registry import connection, references

    found = references.find(connection.connect(), bundle)
    return f"models:/{found.name}/{found.number}"


def _prompts(values: "Params", file: Path | None, count: int) -> list[str]:
    """The first prompts of a file, or of the evaluation's held-out ones."""
    from pipeline import prompts

    if count == 0:
        return []
    if file is not None:
        return prompts.read(file, "--prompts-file")[:count]
    evaluation = values.evaluation
    return prompts.load_prompts(evaluation.prompts_file, count, "evaluation", evaluation.seed, "evaluation")
