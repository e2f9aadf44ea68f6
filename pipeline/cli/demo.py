"""`glance demo`: a page to try a pair beside its teacher."""

import tempfile
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline import artifacts
from pipeline.cli.edges import bundle_folder, one_sentence, refuse_below_root

if TYPE_CHECKING:
    from pipeline.demo.studio import Choice, Studio

EXAMPLES = 6  # prompts to begin with


@click.command()
@click.option(
    "--bundle",
    help="A bundle's folder, models:/name@alias or models:/name/version  [default: artifacts/bundle; without it, the "
    "teacher of params.yaml alone]",
)
@click.option("--teacher", help="The base model's folder  [default: the folder that the bundle names]")
@click.option("--port", default=7860, show_default=True, type=click.IntRange(1, 65535), help="Of the page's address.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--no-browser", is_flag=True, help="Only print the page's address.")
@one_sentence
def demo(bundle: str | None, teacher: str | None, port: int, device: str, no_browser: bool) -> None:
    """Serve a page that draws with a pair and its teacher side by side, on this machine alone, until Ctrl-C.

    The page needs the extra `demo`: pip install 'glance-pipeline[demo]', or `make demo`.
    """
    if find_spec("gradio") is None:
        raise ValueError("glance demo needs the extra demo: run `pip install 'glance-pipeline[demo]'`, or `make demo`")
    with tempfile.TemporaryDirectory(prefix="glance-demo-") as scratch:
        from pipeline.demo import surroundings

        surroundings.keep_to(Path(scratch))

        from pipeline.demo import page, serving, texts
        from pipeline.demo.studio import Studio

        serving.check_port(port)
        with closing(Studio(teacher, device)) as studio:
            choice = _choice(studio, bundle)
            offered = page.Offered(
                studio=studio,
                choice=choice,
                find=bundle_folder,
                examples=_examples(),
                model=_model(),
                note="" if choice.bundle else texts.NO_PAIR.format(bundle=artifacts.BUNDLE),
            )
            studio.warm_up(choice)
            serving.serve(page.build(offered), port, browser=not no_browser, ready=lambda address: click.echo(address))


def _choice(studio: "Studio", bundle: str | None) -> "Choice":
    """What the page opens with: the bundle, or without any the teacher of params.yaml."""
    if bundle is None and not artifacts.BUNDLE.exists():
        refuse_below_root()
        from pipeline import params

        return studio.teacher_alone(params.load())
    name = bundle or artifacts.BUNDLE.as_posix()
    return studio.load(bundle_folder(name), name)


def _examples() -> list[str]:
    """Prompts that the model was not trained on, or the first ones of its training; none outside of a project."""
    from pipeline import params, prompts

    if not Path("params.yaml").is_file():
        return []
    own = params.load()
    file = own.evaluation.prompts_file or own.trajectories.prompts_file
    if file is None:
        return prompts.load_prompts(None, EXAMPLES, "evaluation", own.evaluation.seed, "evaluation")
    return prompts.read(artifacts.named(file), "evaluation.prompts_file")[:EXAMPLES]


def _model() -> str | None:
    """The registered model of params.yaml; None outside of a project."""
    from pipeline import params

    return params.load().register.name if Path("params.yaml").is_file() else None
