"""A clock that counts the drawing alone: not the previews, not the waiting, not the page."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Seconds that were spent under `running`, less those under `paused`."""

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter):
        """
        Args:
            device: A GPU is waited for whenever the clock is read, since its work goes on behind the program.
            now: Seconds from any start.
        """
        self._device, self._now = device, now
        self._counted, self._since = 0.0, None  # type: float, float | None

    @property
    def seconds(self) -> float:
        """What the clock shows."""
        if self._since is None:
            return self._counted
        return self._counted + self._read() - self._since

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts the time of the block."""
        self._since = self._read()
        try:
            yield
        finally:
            self._counted, self._since = self.seconds, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time of a block within `running`."""
        self._counted, self._since = self.seconds, None
        try:
            yield
        finally:
            self._since = self._read()

    def _read(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._now()
