"""Commands for the base model: preset, fetch, assemble."""

from pathlib import Path

import click

from pipeline.cli.edges import in_root, one_sentence, show


@click.command()
@click.argument("name")
@click.option("--rival", "rivals", multiple=True, help="Also add a published rival of this base; may be repeated.")
@one_sentence
@in_root
def preset(name: str, rivals: tuple[str, ...]) -> None:
    """Rewrite params.yaml for the teacher of preset NAME: tiny, flux-dev or qwen-image; all else stays."""
    from pipeline import params, presets
    from pipeline.presets import published

    changes = presets.apply(name)
    for key, before, after in changes:
        click.echo(f"{key}: {before!r} -> {after!r}")
    click.echo(f"{len(changes)} values changed" if changes else f"params.yaml has the values of {name} already")
    for rival in published.add(name, rivals):
        click.echo(f"rivals.{rival}: added")
    values = params.load()
    teacher, there = values.teacher, [rival for rival in published.known(name) if rival not in values.rivals]
    if there:
        click.echo(f"published rivals, each added by --rival NAME: {', '.join(there)}")
    if teacher.hub and not Path(teacher.path).is_dir():
        click.echo(f"next: `glance fetch` downloads {teacher.hub} to {teacher.path}")


@click.command()
@one_sentence
@in_root
def fetch() -> None:
    """Download the teacher, its LoRAs and the rivals that params.yaml names, at their revisions."""
    from pipeline import params, styles
    from pipeline.backbones import hub

    values = params.load()
    teacher = values.teacher
    files = dict.fromkeys(file for rival in values.published.values() for file in rival.files)
    wanted = [lora for lora in styles.missing([*teacher.loras, *files]) if lora.hub]
    if not (wanted and Path(teacher.path).is_dir()):
        if teacher.hub is None:
            raise ValueError("teacher.hub must name owner/name@revision to fetch it, got null")
        show(hub.fetch(teacher.hub, teacher.path))
    for lora in wanted:
        show(hub.fetch_lora(lora))


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--base", required=True, type=click.Path(path_type=Path), help="A diffusers folder of the same family.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to make.")
@one_sentence
def assemble(checkpoint: Path, base: Path, out: Path) -> None:
    """Make a teacher's folder from CHECKPOINT, a transformer in one .safetensors file, and the base's other parts."""
    from pipeline.backbones import assembling

    show(assembling.assemble(checkpoint, base, out))
