"""Ablations: each question is a file under experiments/, its runs are DVC experiments, and its answer is in docs/."""

from collections.abc import Iterable

from pipeline import params
from pipeline.ablations import document, experiments, figure, grid, results
from pipeline.ablations.experiments import Echo
from pipeline.artifacts import atomic_file


def ablate(names: Iterable[str], jobs: int, force: bool, dry: bool, echo: Echo) -> list[str]:
    """Runs the experiments of some questions and renews the page; returns the runs that failed.

    Args:
        names: Names of files under experiments/.
        jobs: How many runs at once.
        force: Run every stage again, also of finished experiments.
        dry: Only print the commands that would run.
        echo: Takes each line of the output.

    Raises:
        ValueError: A file is wrong, or git or DVC refuses.
    """
    defaults = params.load()
    names = dict.fromkeys(names)
    grids = {name: grid.load(name, defaults) for name in [*names, *grid.names()]}  # the page shows all grids
    runs = [run for name in names for run in grids[name].runs]
    failed = experiments.execute(runs, jobs, force, dry, echo)
    if not dry:
        renew(echo)
    return failed


def renew(echo: Echo) -> None:
    """Collects the results of every question from its experiments and writes the tables, the plots and the page.

    Raises:
        ValueError: A file under experiments/ is wrong, or this is no git repository.
    """
    defaults, found = params.load(), {}
    grids = [grid.load(name, defaults) for name in grid.names()]
    for question in grids:
        old = results.read(question.name)
        rows = experiments.collect(question, old)
        if lost := {row.experiment for row in old} - {row.experiment for row in rows}:
            echo(f"{question.name}: the question has changed, its table loses {', '.join(sorted(lost))}")
        if rows:
            results.write(question.name, rows)
        else:
            results.path(question.name).unlink(missing_ok=True)
        found[question.name] = rows = results.read(question.name)  # rounded, as a clone would read them
        plot = document.PLOTS / f"{question.name}.png"
        if document.cells(question, rows):
            figure.draw(question, rows, plot)
        else:
            plot.unlink(missing_ok=True)
        done = len({row.experiment for row in rows})
        echo(f"{question.name}: {done} of {len(question.runs)} runs")
    with atomic_file(document.FILE) as partial:
        partial.write_text(document.page(grids, found), encoding="utf-8")
    echo(str(document.FILE))
