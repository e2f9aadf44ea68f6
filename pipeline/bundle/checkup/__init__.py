"""What can be said of LoRA files and bundles of anybody: whether they can be used on a base, and what is off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import adapters, backbones
from pipeline.artifacts import read_json
from pipeline.bundle.checkup import adapter, contract
from pipeline.bundle.checkup.finding import FAIL, OK, Finding
from pipeline.bundle.manifest import MANIFEST, Bundle
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
        path: A .safetensors file, a folder that peft saved, a bundle, or another folder of .safetensors files.
        base: The base's folder; None = the folder that the bundle names, or else the default's.
        default: Gives the base's folder for files that are no bundle; called only where it is needed.

    Raises:
        ValueError: There is nothing at `path`, or the base cannot be read.
    """
    if not path.exists():
        raise ValueError(f"{path} is missing")
    if (path / MANIFEST).is_file():
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
            yield from adapter.findings(file, backbone, layers)
            yield from contract.of_file(file, place, bundle)

    return Report(path=path, base=place, findings=tuple(findings()))


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
