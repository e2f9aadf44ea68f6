"""The same prompt from several seeds: rows of the student and of the teacher."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from threading import Event

from pipeline.demo.asking import Asked
from pipeline.demo.pictures import Drawn
from pipeline.demo.race import STUDENT, TEACHER
from pipeline.demo.studio import Choice, Progress, Studio
from pipeline.demo.watching import Stopped


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The pictures so far."""

    choice: Choice
    asked: Asked
    """The prompt and the first seed."""
    count: int
    rows: dict[str, tuple[Drawn, ...]] = field(default_factory=dict)
    """By STUDENT and TEACHER: the pictures in the order of their seeds; the last one may be in the making."""
    stopped: bool = False


def gallery(studio: Studio, choice: Choice, asked: Asked, way: str, count: int, stop: Event) -> Iterator[Gallery]:
    """Draws `count` pictures of the student, then of the teacher, from the seeds that follow the first one.

    Yields:
        The gallery, a few times a second, and last the whole one.
    """
    shown = Gallery(choice=choice, asked=asked, count=count)
    for who in (STUDENT, TEACHER) if choice.bundle is not None else (TEACHER,):
        done: tuple[Drawn, ...] = ()
        for seed in range(asked.seed, asked.seed + count):
            one = replace(asked, seed=seed)
            drawing: Progress = (
                studio.student(choice, way, one, stop, frames=False)
                if who == STUDENT
                else studio.teacher(choice, one, stop, frames=False)
            )
            try:
                while True:
                    if report := next(drawing):
                        shown = replace(shown, rows={**shown.rows, who: (*done, report)})
                    yield shown
            except StopIteration as end:
                done = (*done, end.value)
                shown = replace(shown, rows={**shown.rows, who: done})
                yield shown
            except Stopped:
                yield replace(shown, stopped=True)
                return
            finally:
                drawing.close()
