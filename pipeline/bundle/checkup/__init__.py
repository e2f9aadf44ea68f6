"""What can be said of LoRA files and bundles of anybody: whether they can be used on a base, and what is off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline import adapters, backbones
from pipeline.artifacts import read_json
from pipeline.bundle.checkup import adapter, contract
from pipeline.bundle.checkup.finding import FAIL, OK, Finding
from pipeline.bundle.formats import one_file
from pipeline.bundle.manifest import CARD, MANIFEST, Bundle
from pipeline.bundle.parts import SUFFIX


@dataclass(frozen=True, kw_only=True)
class Report:
    """The findings on a file or folder; it can be used if no finding is a failure."""

    path: Path
    base: Path | None
    """The folder of the base that the files were compared with; None if no base was named before the report ended."""
    findings: tuple[Finding, ...]

    @property
    def reason(self) -> str | None:
        """Why it cannot be used; None if it can."""
        return next((one.text for one in self.findings if one.level == FAIL), None)

    def to_json(self) -> dict[str, Any]:
        """The same as JSON's types."""
        return {
            "path": self.path.as_posix(),
            "base": None if self.base is None else self.base.as_posix(),
            "usable": self.reason is None,
            "reason": self.reason,
            "findings": [asdict(one) for one in self.findings],
        }


def check(path: Path, base: Path | None, default: Callable[[], Path]) -> Report:
    """Compares LoRA files with a base.

    Args:
        path: A .safetensors file, a folder that peft saved, a bundle as a folder or in one file, or another folder of
            .safetensors files, such as an export.
        base: The base's folder; None = the folder that the bundle names, or else the default's.
        default: Gives the base's folder for files that are no bundle; called only where it is needed.

    Raises:
        ValueError: There is nothing at `path`, or the base cannot be read.
    """
    if not path.exists():
        raise ValueError(f"{path} is missing")
    held = _one_file(path)
    if held is not None:
        return _in_one_file(path, held, base, default)
    if _is_bundle(path):
        try:
            bundle = Bundle.load(path)
        except ValueError as error:
            return Report(path=path, base=base, findings=(Finding("bundle", FAIL, str(error)),))
        place, files = base or bundle.base().path, list(bundle.files.values())
    else:
        bundle, files = None, _files(path)
        place = base or default()
    backbone = backbones.load(_there(place), "cpu", parts=())
    layers = adapters.linear_shapes(backbone.skeleton())

    def findings() -> Iterator[Finding]:
        if bundle is not None:
            number = read_json(path / MANIFEST)["format"]
            yield Finding("bundle", OK, f"{MANIFEST} of format {number} with {len(files)} files of rank {bundle.rank}")
            yield from contract.of_path(bundle, place)
        for file in files:
            of_adapter = list(adapter.findings(file, backbone, layers))
            yield from of_adapter
            if of_adapter[0].name != "file":  # a file that cannot be read has no contract either
                yield from contract.of_file(file, place, bundle)

    return Report(path=path, base=place, findings=tuple(findings()))


def _is_bundle(path: Path) -> bool:
    """Whether a folder is a bundle, if with a file missing: an export has the contract, and neither other file."""
    return (path / MANIFEST).is_file() and ((path / adapters.CONFIG).exists() or (path / CARD).exists())


def _one_file(path: Path) -> Path | None:
    """The file that holds a whole bundle: `path` itself, or the only LoRA file in it."""
    files = [path] if path.is_file() else sorted(path.glob(f"*{SUFFIX}"))
    if len(files) == 1:
        with suppress(ValueError):
            return files[0] if one_file.content_of(files[0]) else None
        return files[0]  # its header says that it is one, and says it wrongly
    return None


def _in_one_file(path: Path, file: Path, base: Path | None, default: Callable[[], Path]) -> Report:
    """The findings on the bundle that `glance import` makes of a file."""
    with TemporaryDirectory() as scratch:
        try:
            bundle = one_file.restore(file, Path(scratch) / "bundle").folder
        except ValueError as error:
            return Report(path=path, base=base, findings=(Finding("file", FAIL, str(error), file.name),))
        inner = check(bundle, base, default)
    said = Finding("file", OK, f"it holds a whole bundle: `glance import {file}` makes the folder", file.name)
    found = (replace(one, text=one.text.replace(f"{bundle}/", "")) for one in inner.findings)
    return replace(inner, path=path, findings=(said, *found))


def _files(path: Path) -> list[Path]:
    """The file itself, the folder that peft saved, or the folder's LoRA files."""
    if path.is_file() or (path / adapters.WEIGHTS).is_file():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix == SUFFIX)
    if not found:
        raise ValueError(f"{path} holds no {SUFFIX} file")
    return found


def _there(base: Path) -> Path:
    if not base.is_dir():
        raise ValueError(f"the base model {base} is not here: go to the project's root, or name it with --base")
    return base
