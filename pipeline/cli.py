"""`glance`: generate with a bundle; evaluate, register, promote, pull or diagnose one; run the ablations.

Torch and MLflow are imported by the commands that need them, so that `glance --help` answers at once.
"""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline import artifacts, mends
from stages import sentence

OF_ROOT = ("params.yaml", "dvc.yaml")  # the files that show a project's root


def one_sentence(function: Callable[..., None]) -> Callable[..., None]:
    """Turns what went wrong into one sentence and exit code 1."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except (ValueError, OSError) as error:
            raise click.ClickException(sentence(error)) from error
        except (RuntimeError, MemoryError) as error:
            if not mends.out_of_memory(error):
                raise
            raise click.ClickException(mends.sentence(error, mends.generating(kwargs, mends.on_gpu(error)))) from error

    return wrapped


def in_root(function: Callable[..., None]) -> Callable[..., None]:
    """Makes a command that reads params.yaml, artifacts/ or the registry refuse to run below the project's root."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        _refuse_below_root()
        function(*args, **kwargs)

    return wrapped


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="glance-pipeline")
def main() -> None:
    """Slow-fast adapters for flow-matching text-to-image models."""


@main.command()
@click.argument("prompts", nargs=-1)
@click.option("--prompts-file", type=click.Path(path_type=Path), help="A text file, one prompt a line.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Image i starts from seed + i.")
@click.option(
    "--bundle",
    default=artifacts.BUNDLE.as_posix(),
    show_default=True,
    help="A bundle's folder, models:/name@alias or models:/name/version.",
)
@click.option("--teacher", help="The base model's folder  [default: the one that the bundle names]")
@click.option(
    "--out",
    default="images",
    show_default=True,
    type=click.Path(path_type=Path),
    help="A folder for one PNG per prompt, or a .png file: one image, or a grid of several.",
)
@click.option("--grid", is_flag=True, help="Write a grid beside the images in the folder too.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--batch", default=8, show_default=True, type=click.IntRange(min=1), help="Images in one forward.")
@click.option("--offload", is_flag=True, help="One part of the model on the GPU at a time: less memory, seconds more.")
@click.option(
    "--quantization",
    default="none",
    show_default=True,
    type=click.Choice(["none", "int8", "fp8", "nf4"]),
    help="Of the transformer's weights.",
)
@click.option("--compile", "compiled", is_flag=True, help="Compile the transformer's blocks first: for many images.")
@one_sentence
def generate(
    prompts: tuple[str, ...],
    prompts_file: Path | None,
    seed: int,
    bundle: str,
    teacher: str | None,
    out: Path,
    grid: bool,
    device: str,
    batch: int,
    offload: bool,
    quantization: str,
    compiled: bool,
) -> None:
    """Generate an image per PROMPT with the base model and a slow-fast bundle."""
    texts = _prompts(prompts, prompts_file)
    if out.suffix not in ("", ".png"):
        raise ValueError(f"--out must be a folder or a .png file, got {out}")
    folder = _bundle(bundle)

    from pipeline import backbones, export, image_files
    from stages import progress

    loaded = export.Bundle.load(folder)
    base = Path(teacher or loaded.base_model)
    if not base.exists():
        raise ValueError(f"the base model {base} is not here: go to the project's root, or name it with --teacher")
    digest = backbones.digest(base, loaded.loras)
    if digest != loaded.base_digest:
        raise ValueError(f"{bundle} was made for another model than {base}: {loaded.base_digest}, not {digest}")
    backbone = backbones.load(
        base, device, dtype=loaded.dtype, quantization=quantization, loras=loaded.loras, offload=offload
    )
    if compiled:
        backbone.compile()
    images = []
    with progress(total=len(texts), what="generating", unit="image") as bar:
        for first in range(0, len(texts), batch):
            part = texts[first : first + batch]
            seeds = list(range(seed + first, seed + first + len(part)))
            try:
                images += list(export.generate(backbone, loaded, part, seeds).cpu().numpy())
            except RuntimeError as error:
                if not compiled or not type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
                    raise
                raise ValueError(f"--compile needs a C++ compiler, and on a GPU Triton: {sentence(error)}") from error
            bar.update(len(part))
    for path in image_files.write(images, texts, out, grid):
        click.echo(path)


@main.command()
@click.argument("name")
@one_sentence
@in_root
def preset(name: str) -> None:
    """Rewrite params.yaml for the teacher of preset NAME: tiny, flux-dev or qwen-image; comments and the rest stay."""
    from pipeline import params, presets

    changes = presets.apply(name)
    for key, before, after in changes:
        click.echo(f"{key}: {before!r} -> {after!r}")
    click.echo(f"{len(changes)} values changed" if changes else f"params.yaml has the values of {name} already")
    teacher = params.load().teacher
    if teacher.hub and not Path(teacher.path).is_dir():
        click.echo(f"next: `glance fetch` downloads {teacher.hub} to {teacher.path}")


@main.command()
@one_sentence
@in_root
def fetch() -> None:
    """Download the teacher and the LoRAs that params.yaml names, at their pinned revisions."""
    from pipeline import hub, loras, params

    teacher = params.load().teacher
    wanted = [lora for lora in loras.missing(teacher.loras) if lora.hub]
    if not (wanted and Path(teacher.path).is_dir()):
        if teacher.hub is None:
            raise ValueError("teacher.hub must name owner/name@revision to fetch it, got null")
        click.echo(hub.fetch(teacher.hub, teacher.path))
    for lora in wanted:
        click.echo(hub.fetch_lora(lora))


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--base", required=True, type=click.Path(path_type=Path), help="A diffusers folder of the same family.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to make.")
@one_sentence
def assemble(checkpoint: Path, base: Path, out: Path) -> None:
    """Make a teacher's folder of CHECKPOINT, a transformer in one .safetensors file, and the base's other parts."""
    from pipeline import assembling

    click.echo(assembling.assemble(checkpoint, base, out))


@main.command()
@click.argument("reference")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The folder to make  [default: named after the reference, here]"
)
@one_sentence
@in_root
def pull(reference: str, out: Path | None) -> None:
    """Download REFERENCE, a version named models:/name@alias or models:/name/version, and check its bytes."""
    from pipeline import registry

    registry.parse(reference)
    click.echo(registry.pull(reference, out or Path(_name(reference))))


@main.command("import")
@click.argument("slow", type=click.Path(path_type=Path))
@click.argument("fast", type=click.Path(path_type=Path))
@click.option(
    "--out", default="imported", show_default=True, type=click.Path(path_type=Path), help="The bundle's folder."
)
@click.option("--rule", default="official", show_default=True, help="Which steps the phases take, as partition.rule.")
@click.option("--slow-steps", default=5, show_default=True, type=click.IntRange(min=1))
@click.option("--fast-steps", default=5, show_default=True, type=click.IntRange(min=1))
@click.option("--strength", default=1.0, show_default=True, help="What the adapters are multiplied with.")
@click.option(
    "--path",
    default="consistent",
    show_default=True,
    help="How the latents move: consistent, or official as in the released Glance code.",
)
@one_sentence
@in_root
def import_pair(
    slow: Path, fast: Path, out: Path, rule: str, slow_steps: int, fast_steps: int, strength: float, path: str
) -> None:
    """Make a bundle for params.yaml's teacher of two LoRA files: keys of diffusers, kohya or ComfyUI."""
    from pipeline import importing, params

    files, steps = {"slow": slow, "fast": fast}, {"slow": slow_steps, "fast": fast_steps}
    made = importing.bundle(files, params.load(), out, rule, steps, strength, path)
    click.echo(f"{made.folder}: {len(made.steps)} steps, rank {made.rank}")


@main.command()
@click.argument("bundle")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The folder to make  [default: evaluation-<the bundle's name>, here]"
)
@one_sentence
@in_root
def evaluate(bundle: str, out: Path | None) -> None:
    """Measure BUNDLE, a folder or a version, against params.yaml's teacher: what the stage does, for any pair."""
    out = out or Path(f"evaluation-{_name(bundle)}")
    if out.exists():
        raise ValueError(f"--out must not be there yet, got {out}")
    folder = _bundle(bundle)

    from pipeline import params
    from pipeline.evaluation import inputs, run
    from stages import progress, set_threads

    settings = params.load()
    set_threads(settings.runtime.threads)
    source = inputs.of_bundle(settings, folder)
    with artifacts.atomic_dir(out) as partial:
        run.evaluate(settings, source, partial, progress)
    click.echo(out / "report.html")


@main.command()
@click.option("--bundle", default=artifacts.BUNDLE, show_default=True, type=click.Path(path_type=Path))
@click.option(
    "--evaluation",
    default=artifacts.EVALUATION,
    show_default=True,
    type=click.Path(path_type=Path),
    help="What `glance evaluate` or `dvc repro` measured of the bundle.",
)
@one_sentence
@in_root
def register(bundle: Path, evaluation: Path) -> None:
    """Publish the last `dvc repro` and register its bundle as `candidate`; the same bytes make no second version.

    With --bundle another pair is registered, on the strength of its own evaluation.
    """
    from pipeline import params, registry

    done = registry.register(params.load(), bundle, evaluation)
    click.echo(f"{done.version}{'' if done.created else ' has these bytes already'} (run {done.run_id})")


@main.command()
@click.argument("reference", required=False)
@click.option("--force", is_flag=True, help="Promote it whatever its retention is.")
@one_sentence
@in_root
def promote(reference: str | None, force: bool) -> None:
    """Make a version the `champion`.

    REFERENCE is models:/name@alias, models:/name/version or a version number; without it the candidate is meant. It is
    refused below register.min_retention of params.yaml.
    """
    from pipeline import params, registry

    version = registry.promote(params.load(), reference, force)
    retention = version.tags.get("retention")
    measured = "retention unmeasured" if retention is None else f"retention {100 * float(retention):.1f} %"
    click.echo(f"{version} is {registry.CHAMPION} ({measured})")


@main.command()
@one_sentence
@in_root
def doctor() -> None:
    """Check git, DVC, packages, the teacher and the registry; say what is wrong and how to mend it."""
    from pipeline import diagnosis

    wrong = 0
    for name, finding in diagnosis.run():
        wrong += not finding.ok
        click.echo(f"{'ok  ' if finding.ok else 'FAIL'} {name}: {finding.text}")
        if finding.mend:
            click.echo(f"     mend: {finding.mend}")
    if wrong:
        raise click.ClickException(f"{wrong} of {len(diagnosis.CHECKS)} checks failed")


@main.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="How many runs go at once.")
@click.option("--force", is_flag=True, help="Run what is there too, every stage anew.")
@click.option("--dry-run", is_flag=True, help="Only print the commands of DVC.")
@one_sentence
@in_root
def ablate(names: tuple[str, ...], jobs: int, force: bool, dry_run: bool) -> None:
    """Run the experiments of experiments/NAME.yaml that are not there yet, and renew docs/ablations.md."""
    from pipeline import ablations

    failed = ablations.ablate(names, jobs, force, dry_run, click.echo)
    if failed:
        raise click.ClickException(f"{len(failed)} runs failed: {', '.join(failed)}")


@main.command()
@one_sentence
@in_root
def ablations() -> None:
    """Renew docs/ablations.md from the experiments that are here and the tables in experiments/results/."""
    from pipeline import ablations

    ablations.renew(click.echo)


def _refuse_below_root() -> None:
    here = Path.cwd()
    roots = [folder for folder in (here, *here.parents) if all((folder / name).is_file() for name in OF_ROOT)]
    if roots and roots[0] != here:
        raise ValueError(f"{here} is a folder below the project's root: run this in {roots[0]}")


def _prompts(prompts: tuple[str, ...], prompts_file: Path | None) -> list[str]:
    texts = list(prompts)
    if prompts_file is not None:
        texts += prompts_file.read_text(encoding="utf-8").splitlines()
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        where = f"; {prompts_file} is empty" if prompts_file else ""
        raise ValueError(f"generate needs at least one prompt, as an argument or in --prompts-file{where}")
    return texts


def _name(bundle: str) -> str:
    """A folder's own name, or a version's reference as one."""
    return (
        re.sub(r"[/@]", "-", bundle.removeprefix("models:/"))
        if bundle.startswith("models:")
        else Path(bundle).resolve().name
    )


def _bundle(bundle: str) -> Path:
    """The bundle's folder; a version of the registry is pulled into a cache that its digest keys."""
    if bundle.startswith("models:") or not Path(bundle).exists():
        _refuse_below_root()
    if not bundle.startswith("models:"):
        return Path(bundle)

    from pipeline import registry

    return registry.pull(bundle)


if __name__ == "__main__":
    main()
