"""How long work says how far it is."""

from collections.abc import Callable
from typing import Any

Progress = Callable[..., Any]
"""Opens a progress bar of `total`, `what` and `unit`, a context whose `update` takes how much is done; or puts the bar
around an iterable."""
