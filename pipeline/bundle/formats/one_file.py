"""All adapters of a bundle in one file, which `glance import` turns into the same bundle again, byte by byte."""

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from pipeline.artifacts import atomic_dir, files, save_safetensors
from pipeline.bundle.formats.base import Format
from pipeline.bundle.manifest import SUFFIX, Bundle, bundle_digest

HEADER = "glance_bundle"
FORMAT = 1
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""The names of files that may lie in a bundle's folder, and in none below or beside it."""
TEXTS = (".json", ".md")


@dataclass(frozen=True)
class Content:
    """What the header of such a file says.

    Attributes:
        digest: The bundle's.
        texts: The content of every file that is no adapter, by its name.
        headers: The header of each phase's file, as it was written.
    """

    digest: str
    texts: dict[str, str]
    headers: dict[str, str]


def write(bundle: Bundle, folder: Path) -> list[Path]:
    """Writes the tensors of each phase under "<phase>.<key in the phase's file>"; the header has all other files.

    Raises:
        ValueError: The bundle's folder holds a file that is neither JSON nor Markdown in UTF-8.
    """
    tensors: dict[str, Tensor] = {}
    for phase, path in bundle.files.items():
        tensors |= {f"{phase}.{key}": tensor for key, tensor in load_file(path).items()}
    adapters = {path.name for path in bundle.files.values()}
    digest = bundle_digest(bundle.folder)
    content = {
        "format": FORMAT,
        "digest": digest,
        "texts": {name: _text(bundle.folder, name) for name in files(bundle.folder) if name not in adapters},
        "headers": {phase: _header(path) for phase, path in bundle.files.items()},
    }
    file = Path(f"glance-{digest.removeprefix('sha256:')[:8]}{SUFFIX}")
    save_safetensors(folder / file, tensors, {HEADER: json.dumps(content, sort_keys=True)})
    return [file]


def content_of(file: Path) -> Content | None:
    """What the header of a file of this format says; None for any other file.

    Raises:
        ValueError: The header says something else than this format does.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {}).get(HEADER)
    except (OSError, SafetensorError):
        return None  # the reader of LoRA files says what is wrong
    if text is None:
        return None
    try:
        entries = json.loads(text)
        if entries["format"] != FORMAT:
            raise ValueError(f"its format must be {FORMAT}, got {entries['format']!r}")
        content = Content(str(entries["digest"]), dict(entries["texts"]), dict(entries["headers"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: {HEADER} in the header is no bundle ({error})") from error
    for name in content.texts:
        if not _is_text(name):
            raise ValueError(f"{file}: {HEADER} must hold JSON and Markdown files alone, got {name!r}")
    for phase in content.headers:
        if not NAME.fullmatch(phase):
            raise ValueError(f"{file}: {HEADER} must name phases as files are named, got {phase!r}")
    return content


def restore(file: Path, out: Path) -> Bundle:
    """Writes the bundle of a file of this format, whole or not at all, with the bytes that it had.

    Raises:
        ValueError: `out` exists, the file is none of this format, or its bundle comes out with another digest.
    """
    if out.exists():
        raise ValueError(f"--out must not be there yet, got {out}")
    content = content_of(file)
    if content is None:
        raise ValueError(f"{file} has no bundle in its header, which `glance export --format one-file` writes")
    tensors = load_file(file)
    with atomic_dir(out) as folder:
        for name, text in content.texts.items():
            (folder / name).write_bytes(text.encode())
        for phase, header in content.headers.items():
            try:
                body = b"".join(_bytes(tensors[f"{phase}.{key}"]) for key in _keys(header))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{file}: the header of phase {phase} does not fit its tensors ({error})") from error
            head = header.encode()
            (folder / f"{phase}{SUFFIX}").write_bytes(len(head).to_bytes(8, "little") + head + body)
        if bundle_digest(folder) != content.digest:
            raise ValueError(f"{file} is damaged: its bundle must have the digest {content.digest}")
        Bundle.load(folder)
    return Bundle.load(out)


def _is_text(name: str) -> bool:
    return bool(NAME.fullmatch(name)) and name.endswith(TEXTS)


def _text(folder: Path, name: str) -> str:
    if _is_text(name):
        with suppress(UnicodeDecodeError):
            return (folder / name).read_bytes().decode("utf-8")
    raise ValueError(f"--format one-file takes adapters, JSON and Markdown in UTF-8, got {folder / name}")


def _header(path: Path) -> str:
    """The header of a safetensors file: its first 8 bytes hold the header's length."""
    with open(path, "rb") as file:
        return file.read(int.from_bytes(file.read(8), "little")).decode("utf-8")


def _keys(header: str) -> list[str]:
    """The tensors of a header in the order of their bytes."""
    entries: dict[str, Any] = json.loads(header)
    entries.pop("__metadata__", None)
    return sorted(entries, key=lambda key: entries[key]["data_offsets"])


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


ONE_FILE = Format(
    name="one-file",
    description="All files of the bundle in one file, which `glance import` turns into the bundle again.",
    write=write,
    needs_base=False,
)
