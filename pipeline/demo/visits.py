"""The visitors' drawings: each visitor has one at a time, which the visitor can stop."""

from threading import Event, Lock


class Visits:
    """The running drawing of each visitor."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._running: dict[str, Event] = {}

    def begin(self, visitor: str) -> Event:
        """Stops the visitor's drawing, if one runs, and returns the event that stops the new one."""
        with self._lock:
            self._stop(visitor)
            self._running[visitor] = Event()
            return self._running[visitor]

    def current(self, visitor: str, drawing: Event) -> bool:
        """Whether the visitor has begun no other drawing since this one."""
        with self._lock:
            return self._running.get(visitor) is drawing

    def stop(self, visitor: str) -> None:
        """Stops the visitor's drawing, if one runs."""
        with self._lock:
            self._stop(visitor)

    def leave(self, visitor: str) -> None:
        """Stops the drawing of a visitor who closed the page, and forgets the visitor."""
        with self._lock:
            self._stop(visitor)
            self._running.pop(visitor, None)

    def _stop(self, visitor: str) -> None:
        if visitor in self._running:
            self._running[visitor].set()
