"""How long work says how far it is."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

Progress = Callable[..., AbstractContextManager[Any]]
"""Opens a progress bar of `total`, `what` and `unit`; its `update` takes how much is done."""
