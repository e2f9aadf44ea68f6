"""The LoRAs that are part of a teacher: files under loras/, each fused into the teacher's transformer with a weight."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pipeline.artifacts import file_digest
from pipeline.names import meant_path

FOLDER = Path("loras")  # a dependency in dvc.yaml
RULE = f"teacher.loras must hold FILE.safetensors or FILE.safetensors:WEIGHT with files under {FOLDER}/"
HUB = re.compile(r"(?P<repository>[^/@\s]+/[^/@\s]+)@(?P<revision>[^/@\s]+)/(?P<filename>.+)")


@dataclass(frozen=True)
class Lora:
    """One LoRA file of a teacher.

    Attributes:
        file: Path below FOLDER; owner/name@revision/... is a file of the hub.
        weight: W becomes W + weight B A.
        sha256: Hex digest that the file must have; None = any.

    Raises:
        ValueError: The file is no path of a safetensors file under FOLDER, or the weight is no finite number.
    """

    file: str
    weight: float = 1.0
    sha256: str | None = None

    key: ClassVar[str] = "teacher.loras"
    folder: ClassVar[Path] = FOLDER
    rule: ClassVar[str] = RULE

    def __post_init__(self) -> None:
        inside = not {"", ".", ".."} & set(self.file.split("/")) and "\\" not in self.file
        if not inside or not self.file.endswith(".safetensors"):
            raise ValueError(f"{self.rule}, got {self.file!r}")
        if not math.isfinite(self.weight):
            raise ValueError(f"{self.rule}, WEIGHT a finite number, got {self.weight}")

    @property
    def path(self) -> Path:
        """The path of the file."""
        return self.folder / self.file

    @property
    def hub(self) -> re.Match | None:
        """`repository`, `revision` and `filename` of the hub's file; None for a file of one's own."""
        return HUB.fullmatch(self.file)

    @property
    def how_to_get(self) -> str:
        """How to get the file, as the end of a message."""
        if self.hub:
            return f"run `glance fetch`, which gets what {self.key} lists, or copy it to {self.path} yourself"
        return f"copy it to {self.path}; a hub's file is written owner/name@revision/FILE"

    def require(self) -> None:
        """Raises ValueError unless the file exists."""
        if not self.path.is_file():
            raise ValueError(f"the LoRA {self.path} is missing: {self.how_to_get}{meant_path(self.path)}")

    def digest(self) -> str:
        """Digest of the file's bytes, "sha256:<hex>".

        Raises:
            ValueError: The file is missing, or its bytes do not match `sha256`.
        """
        self.require()
        digest = file_digest(self.path)
        if self.sha256 is not None and digest != f"sha256:{self.sha256}":
            raise ValueError(f"{self.path} must have the sha256 {self.sha256}, got {digest.removeprefix('sha256:')}")
        return digest


@dataclass(frozen=True)
class RivalFile(Lora):
    """One LoRA file of a published rival: another folder, so that a new rival makes no recording of the teacher stale.

    Raises:
        ValueError: The file is no path of a safetensors file under its folder.
    """

    key: ClassVar[str] = "rivals"
    folder: ClassVar[Path] = Path("rivals")  # a dependency in dvc.yaml
    rule: ClassVar[str] = "weights must be FILE.safetensors under rivals/, or the hub's owner/name@revision/FILE"


def parse(text: str) -> Lora:
    """The LoRA of an entry of teacher.loras: FILE or FILE:WEIGHT. Raises ValueError as `Lora` does."""
    found = re.fullmatch(r"(?P<file>.+\.safetensors)(:(?P<weight>[^/]*))?", text)
    if found is None:
        raise ValueError(f"{RULE}, got {text!r}")
    try:
        return Lora(found["file"], 1.0 if found["weight"] is None else float(found["weight"]))
    except ValueError as error:
        raise ValueError(f"{RULE}, WEIGHT a finite number, got {text!r}") from error


def content(loras: Sequence[Lora]) -> list[tuple[str, float]]:
    """(digest, weight) of each LoRA, all that fusing it depends on. Raises ValueError as `Lora.digest` does."""
    return [(lora.digest(), lora.weight) for lora in loras]


def pinned(loras: Sequence[Lora]) -> tuple[Lora, ...]:
    """The LoRAs, with the present digest of each file as `sha256`. Raises ValueError as `Lora.digest` does."""
    return tuple(Lora(lora.file, lora.weight, lora.digest().removeprefix("sha256:")) for lora in loras)


def missing(loras: Sequence[Lora]) -> list[Lora]:
    """The LoRAs whose file is missing."""
    return [lora for lora in loras if not lora.path.is_file()]
