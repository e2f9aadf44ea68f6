"""What one visitor sees: student and teacher, drawn one after the other from the same noise."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from threading import Event

from pipeline.demo.asking import Asked
from pipeline.demo.pictures import Drawn
from pipeline.demo.studio import Choice, Progress, Studio
from pipeline.demo.watching import Stopped
from pipeline.demo.ways import WHOLE

STUDENT, TEACHER = "student", "teacher"


@dataclass(frozen=True, kw_only=True)
class Sight:
    """The two pictures, finished or in the making."""

    choice: Choice
    asked: Asked | None = None
    way: str = WHOLE
    drawings: dict[str, Drawn] = field(default_factory=dict)
    """By STUDENT and TEACHER; a picture that nobody asked for yet has no entry."""
    waiting: str = ""
    """STUDENT or TEACHER, while another visitor's picture is being drawn first."""
    stopped: bool = False

    @property
    def teacher_of(self) -> tuple[str, Asked | None, object]:
        """What the teacher's picture depends on."""
        return self.choice.base_digest, self.asked, self.choice.setting

    def with_drawing(self, who: str, drawn: Drawn | None) -> "Sight":
        """With one picture's latest state; None = its drawing has not begun."""
        if drawn is None:
            return replace(self, waiting=who)
        return replace(self, waiting="", drawings={**self.drawings, who: drawn})


def race(studio: Studio, before: Sight, asked: Asked, way: str, stop: Event, *, again: bool) -> Iterator[Sight]:
    """Draws the student, then the teacher, each alone on the device, so that neither slows the other down.

    Args:
        studio: Draws.
        before: What the visitor sees now.
        asked: The prompt and the seed.
        way: The name of one of `ways.ways`.
        stop: Ends the drawing; the pictures so far stay.
        again: Draw the teacher too if its picture of this prompt and seed is there.

    Yields:
        What the visitor sees, a few times a second, and last the result.
    """
    sight = Sight(choice=before.choice, asked=asked, way=way)
    kept = before.drawings.get(TEACHER)
    if not again and kept is not None and kept.done and before.teacher_of == sight.teacher_of:
        sight = replace(sight, drawings={TEACHER: kept})
    if sight.choice.bundle is not None:
        sight = yield from followed(sight, STUDENT, studio.student(sight.choice, way, asked, stop, frames=True))
        yield sight
    if TEACHER not in sight.drawings and not sight.stopped:
        sight = yield from followed(sight, TEACHER, studio.teacher(sight.choice, asked, stop, frames=True))
        yield sight


def followed(sight: Sight, who: str, drawing: Progress) -> Generator[Sight, None, Sight]:
    """Yields what the visitor sees during one drawing; returns it with the picture, or as it was at the stop."""
    try:
        while True:
            sight = sight.with_drawing(who, next(drawing))
            yield sight
    except StopIteration as end:
        return sight.with_drawing(who, end.value)
    except Stopped:
        return replace(sight, waiting="", stopped=True)
    finally:
        drawing.close()
