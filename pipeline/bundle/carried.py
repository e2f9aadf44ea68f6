"""The contract that LoRA files carry in their headers, from which a bundle is rebuilt without its manifest."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.adapters import lora_files
from pipeline.bundle import header
from pipeline.bundle.manifest import Bundle


@dataclass(frozen=True, kw_only=True)
class Carried:
    """A contract, and the file of each of its phases."""

    contract: Bundle
    files: dict[str, Path]
    """In the order of the phases."""


def carry(files: Sequence[Path]) -> bool:
    """Whether every file has a contract in its header, of whatever content. Raises ValueError as `by` does."""
    return all(header.KEY in lora_files.header(file) for file in files)


def by(files: Sequence[Path]) -> Carried | None:
    """The contract that all files carry; None if one of them carries none.

    Args:
        files: One file per phase in any order, as `lora_files.read` takes them.

    Raises:
        ValueError: A file cannot be read, a header holds no contract that the schema takes, two contracts differ, two
            files are the same phase, or a phase has no file.
    """
    found = [(file, header.read(lora_files.header(file), file)) for file in files]
    read = [(file, *one) for file, one in found if one is not None]
    if not read or len(read) < len(files):
        return None
    first, contract, _ = read[0]
    phases: dict[str, Path] = {}
    for file, other, phase in read:
        _same(contract, other, first, file)
        if phase in phases:
            raise ValueError(f"{file} and {phases[phase]} must be adapters of two phases, got {phase} twice")
        phases[phase] = file
    names = [phase.name for phase in contract.phases]
    if set(names) != phases.keys():
        raise ValueError(f"the files must be the phases {', '.join(names)} of their contract, got {', '.join(phases)}")
    return Carried(contract=contract, files={name: phases[name] for name in names})


def _same(one: Bundle, other: Bundle, first: Path, second: Path) -> None:
    a, b = one.to_json(), other.to_json()
    differing = [key for key in a if a[key] != b[key]]
    if differing:
        key = differing[0]
        raise ValueError(
            f"{second} must carry the contract of {first}, got {key} {_shown(b[key])} beside {_shown(a[key])}"
        )


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
