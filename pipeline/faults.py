"""Collects every fault in one go: checks that do not stop at the first refusal."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any


class Faults(ValueError):
    """Every fault, one sentence each; as text, the first sentence and the number of the others."""

    def __init__(self, sentences: Iterable[str]):
        self.sentences = tuple(sentences)
        first, *others = self.sentences
        super().__init__(f"{first} (and {len(others)} more)" if others else first)


class WrongValue(Exception):
    """A check asked for a value that another check has refused already, as wrong or missing."""


class RightValues:
    """The valid values of a file or section, in place of its dataclass; asking for a wrong one raises WrongValue."""

    def __init__(self, values: Mapping[str, Any]):
        vars(self).update(values)

    def __getattr__(self, name: str) -> Any:
        raise WrongValue(name)


def refusals(checks: Iterable[Callable[[], object]]) -> list[str]:
    """The sentences of the checks that refuse, each once. A check that asks for a refused value is skipped."""
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
    """Runs every check; raises Faults with the sentences of all that refuse."""
    found = refusals(checks)
    if found:
        raise Faults(found)
