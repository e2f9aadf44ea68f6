"""One line of a report on a LoRA file or a bundle."""

from dataclasses import dataclass

OK, NOTE, FAIL = "ok", "note", "FAIL"
"""Levels: as it should be; worth knowing; cannot be used."""


@dataclass(frozen=True)
class Finding:
    """What was looked at, and what was found."""

    name: str
    """What was looked at, one word."""
    level: str
    """OK, NOTE or FAIL."""
    text: str
    """What was found, one sentence without a full stop."""
    file: str | None = None
    """The file's name; None if the finding is on the whole bundle."""
