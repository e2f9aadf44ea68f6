"""The lock of the project's registry."""

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from pipeline.registry import places

LOCK_S = 900.0  # seconds to wait for another registration on this machine


@contextmanager
def locked() -> Iterator[None]:
    """Holds the project's registry lock, since two processes must not initialise MLflow's sqlite at the same time.

    Raises:
        TimeoutError: Another process kept the lock too long.
    """
    path = places.home() / "mlflow.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=LOCK_S, is_singleton=True)  # a process may enter twice
    try:
        lock.acquire()
    except Timeout as error:
        raise TimeoutError(f"{path} is held by another registration for more than {LOCK_S:g} s") from error
    try:
        yield
    finally:
        lock.release()
