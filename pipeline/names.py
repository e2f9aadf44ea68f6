"""Looks a name up in the table that holds it; an unknown one is refused with the known name that is nearest to it."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

LIKENESS = 0.5  # share of letters in common: two exchanged ones in a name of four still count as near


def check(key: str, name: object, known: Iterable[str], rule: str = "be one of", where: str = "") -> None:
    """Refuses a name that is not in its table.

    Args:
        key: The parameter or option that holds the name, for the message.
        name: What is looked up.
        known: The names of the table.
        rule: How the message says that: "be one of", or "be among" for one of several names.
        where: What the message says after the known names, such as " for flux".

    Raises:
        ValueError: `name` is not among `known`.
    """
    known = tuple(known)
    if name not in known:
        raise ValueError(f"{key} must {rule} {', '.join(known)}{where}, got {name!r}{meant(name, known)}")


def meant(name: object, known: Iterable[str]) -> str:
    """The end of a message, "; did you mean X?" with the nearest known name, or "" where none is near."""
    found = nearest(name, known)
    return f"; did you mean {found}?" if found else ""


def meant_path(path: str | Path) -> str:
    """The same for a file or folder that is missing, among what lies beside it."""
    path = Path(path)
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    found = nearest(path.name, beside)
    return f"; did you mean {path.with_name(found)}?" if found else ""


def nearest(name: object, known: Iterable[str]) -> str | None:
    """The known name that is nearest in its letters, whatever their case; None where none is near."""
    if not isinstance(name, str):
        return None
    by_letters = {other.lower(): other for other in known}
    found = get_close_matches(name.lower().strip(), by_letters, n=1, cutoff=LIKENESS)
    return by_letters[found[0]] if found else None
