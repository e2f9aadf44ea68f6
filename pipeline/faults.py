"""Everything that is wrong, in one go: checks that do not stop at the first refusal."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any


class Faults(ValueError):
    """Everything that is wrong, a sentence each; as a text the first of them, and how many follow."""

    def __init__(self, sentences: Iterable[str]):
        self.sentences = tuple(sentences)
        first, *others = self.sentences
        super().__init__(f"{first} (and {len(others)} more)" if others else first)


class WrongValue(Exception):
    """A check asked for a value that is wrong or missing itself, and is refused for that already."""


class RightValues:
    """A file or a section without its wrong values, in place of its dataclass; asking for one raises WrongValue."""

    def __init__(self, values: Mapping[str, Any]):
        vars(self).update(values)

    def __getattr__(self, name: str) -> Any:
        raise WrongValue(name)


def refusals(checks: Iterable[Callable[[], object]]) -> list[str]:
    """What the checks refuse, each sentence once. A check of a value that is wrong itself is left out."""
    found: list[str] = []
    for check in checks:
        try:
            check()
        except WrongValue:
            continue
        except Faults as error:
            found += error.sentences
        except ValueError as error:
            found.append(" ".join(str(error).split()))
        except OSError as error:
            found.append(f"{error.strerror}: {error.filename}" if error.strerror else str(error))
    return list(dict.fromkeys(found))


def require_all(checks: Iterable[Callable[[], object]]) -> None:
    """Makes every check; raises Faults with all that they refuse."""
    found = refusals(checks)
    if found:
        raise Faults(found)
