"""Work with a callback as a generator: the work runs in another thread, and the caller sees its latest report."""

import time
from collections.abc import Callable, Generator
from concurrent.futures import Executor
from threading import Event, Lock
from typing import TypeVar

Report = TypeVar("Report")
Result = TypeVar("Result")


class Stopped(Exception):
    """The work was asked to stop."""


def watched(
    executor: Executor,
    work: Callable[[Callable[[Report], None]], Result],
    stop: Callable[[], bool],
    every_s: float = 0.1,
) -> Generator[Report | None, None, Result]:
    """Runs `work(tell)` in the executor, and yields what it told last, about every `every_s` seconds.

    The work never waits for its caller. If the caller closes the generator, the work ends at its next call of `tell`.

    Args:
        executor: Runs the work, after the works that were submitted before.
        work: Calls `tell` with reports, and returns the result.
        stop: Once it answers True, the work ends at its next call of `tell`, or does not start.
        every_s: Seconds between two reports.

    Yields:
        The latest report; None before the first one, while the executor is busy with other work.

    Returns:
        The result of the work.

    Raises:
        Stopped: `stop` answered True before the work was done.
        Exception: What the work raised.
    """
    lock, told, left = Lock(), Event(), Event()
    latest: list[Report] = []

    def tell(report: Report) -> None:
        if stop() or left.is_set():
            raise Stopped
        with lock:
            latest[:] = [report]
        told.set()

    def run() -> Result:
        if stop() or left.is_set():
            raise Stopped
        return work(tell)

    future = executor.submit(run)
    future.add_done_callback(lambda _: told.set())
    try:
        while not future.done():
            told.wait(every_s)
            told.clear()
            if stop() and future.cancel():
                raise Stopped
            if not future.done():
                with lock:
                    report = latest[0] if latest else None
                yield report
                time.sleep(every_s / 2)  # the page's own work must not slow the forwards down
        return future.result()
    finally:
        left.set()
        future.cancel()
