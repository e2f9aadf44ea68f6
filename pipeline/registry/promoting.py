"""Makes a version the champion if its retention is high enough."""

from collections.abc import Mapping

from pipeline.params import Params
from pipeline.registry import benchmarks
from pipeline.registry.connection import connect
from pipeline.registry.references import CANDIDATE, CHAMPION, find, parse
from pipeline.registry.verifying import verify
from pipeline.registry.versions import Version


def promote(
    params: Params, reference: str | None = None, *, required: Mapping[str, float] | None = None, force: bool = False
) -> Version:
    """Points the alias `champion` at a version.

    Args:
        params: `register.min_retention` is the least retention of a champion.
        reference: `models:/name@alias`, `models:/name/version`, or a version number; None = the candidate.
        required: The least retention in official benchmarks, as `benchmarks.check` takes it.
        force: Promote the version whatever its retention is.

    Raises:
        ValueError: A retention is below its threshold or was never measured, the version's files are gone or changed,
            or the reference has another form.
        ConnectionError: There is no such version, or the server is down.
    """
    name = params.register.name
    if reference is None:
        reference = f"models:/{name}@{CANDIDATE}"
    elif reference.isdecimal():
        reference = f"models:/{name}/{reference}"
    parse(reference)
    store = connect()
    version = find(store, reference)
    retention, threshold = version.tags.get("retention"), params.register.min_retention
    if not force:
        if retention is None:
            raise ValueError(f"{version} has no measured retention: evaluate it, or promote it with --force")
        if not float(retention) >= threshold:
            raise ValueError(
                f"{version} keeps {float(retention):.3f} of the teacher's score, register.min_retention asks for"
                f" {threshold:g}: train a better one, or promote it with --force"
            )
        benchmarks.check(version, required or {})
    verify(store, version)
    store.versions.set_alias(version, CHAMPION)
    return version
