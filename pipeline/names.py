"""Looks a name up in a table; refuses an unknown name, and suggests the nearest known one."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

LIKENESS = 0.5  # share of letters in common: a name of four letters with two exchanged still counts as near


def check(key: str, name: object, known: Iterable[str], rule: str = "be one of", where: str = "") -> None:
    """Refuses a name that is not in its table.

    Args:
        key: The parameter or option that holds the name, for the message.
        name: What is looked up.
        known: The names of the table.
        rule: Words after "must" in the message: "be one of", or "be among" for one of several names.
        where: Words after the known names in the message, such as " for flux".

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
    """The same end of a message for a missing file or folder, with the nearest name in its parent folder."""
    path = Path(path)
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    found = nearest(path.name, beside)
    return f"; did you mean {path.with_name(found)}?" if found else ""


def nearest(name: object, known: Iterable[str]) -> str | None:
    """The known name with the most similar letters, ignoring case; None where none is near."""
    if not isinstance(name, str):
        return None
    by_letters = {other.lower(): other for other in known}
    found = get_close_matches(name.lower().strip(), by_letters, n=1, cutoff=LIKENESS)
    return by_letters[found[0]] if found else None
