"""How a version is named: models:/name@alias or models:/name/version."""

import re

from pipeline.registry.connection import Store
from pipeline.registry.versions import Version

CANDIDATE = "candidate"  # the bundle that the pipeline registered last
CHAMPION = "champion"  # the bundle that somebody promoted


def parse(reference: str) -> tuple[str, str | None, int | None]:
    """Takes a reference apart: (name, alias, None) or (name, None, version number).

    Raises:
        ValueError: The reference has another form.
    """
    match = re.fullmatch(r"models:/([^/@:]+)(?:@([^/@:]+)|/(\d+))", reference)
    if match is None:
        raise ValueError(f"a version is named models:/name@alias or models:/name/version, got {reference!r}")
    name, alias, number = match.groups()
    return name, alias, None if number is None else int(number)


def find(store: Store, reference: str) -> Version:
    """The version that a reference names.

    Raises:
        ValueError: The reference has another form than `parse` takes.
        ConnectionError: There is no such version.
    """
    name, alias, number = parse(reference)
    return store.versions.by_number(name, number) if alias is None else store.versions.by_alias(name, alias)
