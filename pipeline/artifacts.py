"""Where every artifact lies and how it is written: whole or not at all.

Inputs and outputs are relative to the working directory, which `dvc exp run --temp` moves. Checkpoints are under
`$DVC_ROOT`, which stays the main repository.
"""

import hashlib
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path("artifacts")
CHECK = ROOT / "check.json"
TEACHER = ROOT / "teacher"
TRAJECTORIES = ROOT / "trajectories"
ANCHORS = ROOT / "anchors"
PARTITION = ROOT / "partition" / "partition.json"
TRAIN_SLOW = ROOT / "train_slow"
TRAIN_FAST = ROOT / "train_fast"
TRAIN_CONTROLS = ROOT / "train_controls"
BUNDLE = ROOT / "bundle"
IMAGES = ROOT / "images"
EVALUATION = ROOT / "evaluation"
LATENCY = ROOT / "timing" / "latency.json"

FOREIGN = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "__pycache__")  # beside names that start with a dot


def dvc_root() -> Path:
    """The main repository: `$DVC_ROOT`, which DVC sets for its stages, or the working directory."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def checkpoint_dir(stage: str, key: str) -> Path:
    """The folder of a stage's unfinished work, made if missing; the caller removes it on success.

    Args:
        stage: The stage's name.
        key: Digest (see `digest_of`) of everything that the work depends on. Another key is another folder, so that no
            checkpoint reaches a run with other parameters, inputs or code.
    """
    folder = dvc_root() / ".glance" / "checkpoints" / stage / key.removeprefix("sha256:")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, renamed onto it on success and removed on failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.filename is None:  # the error of a failed write does not name the file
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Yields an empty temporary folder beside `path`: it replaces `path` on success, and is removed on failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed
    partial.mkdir()
    try:
        yield partial
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Makes `target` the same file as `source`, or a copy where there are no hard links between the two."""
    try:
        os.link(os.path.realpath(source), target)  # not a link to a link, such as the hub's cache holds
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def named(path: str) -> Path:
    """The path that a UTF-8 text such as params.yaml names, even if the locale lacks letters of the path."""
    return Path(os.fsdecode(path.encode("utf-8")))


def legible(message: str) -> str:
    """A message with all letters of its file names, even if the locale lacks them."""
    return message.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def read_text(path: str | Path) -> str:
    """The content of a UTF-8 text file, without a byte order mark.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is in another encoding.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path} must be UTF-8 text, and line {line} is not: save it as UTF-8") from None


def write_json(path: str | Path, content: Any) -> None:
    """Writes `content` as indented JSON.

    Raises:
        ValueError: A number is not finite: JSON has no word for it.
    """
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error


def save_safetensors(
    path: str | Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors, whole or not at all; equal tensors and metadata give equal bytes.

    The writer of safetensors puts several keys of the metadata in a random order. It gets one key of the same length
    instead, whose place the keys in their order then take.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = dict(sorted((metadata or {}).items()))
    text = json.dumps(metadata, separators=(",", ":"))
    stand_in = {"": " " * (len(text) - len('{"":""}'))}
    with atomic_file(path) as partial:
        try:
            save_file(contiguous, partial, metadata=stand_in if len(metadata) > 1 else metadata)
            if len(metadata) > 1:
                _overwrite(partial, json.dumps(stand_in, separators=(",", ":")), text)
            partial.chmod(0o644)  # safetensors lets the file's owner alone read it
        except SafetensorError as error:  # wraps the system's error in text
            code = re.search(r"os error (\d+)", str(error))
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


def _overwrite(file: Path, old: str, new: str) -> None:
    """Replaces a text in the header of a safetensors file by another text of the same length, both ASCII."""
    with file.open("r+b") as opened:
        header = opened.read(int.from_bytes(opened.read(8), "little"))
        opened.seek(8 + header.index(old.encode()))
        opened.write(new.encode())


def save_torch(path: str | Path, content: Any) -> None:
    """Writes what `torch.load(weights_only=True)` reads back, whole or not at all.

    Raises:
        OSError: The disk is full, or the folder cannot be written; torch alone would give a RuntimeError without cause.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_file(path) as partial:
        partial.write_bytes(buffer.getbuffer())


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as "sha256:<hex>"."""
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def foreign(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or made by the operating system or Python for themselves."""
    return name.startswith(".") or name.lower() in FOREIGN


def files(folder: str | Path) -> list[str]:
    """Sorted paths of all files in a folder, relative to the folder; follows links, and skips `foreign` names.

    Raises:
        ValueError: A link leads nowhere, or to a folder that holds the link.
    """

    def walk(place: Path, above: tuple[Path, ...]) -> Iterator[Path]:
        for path in place.iterdir():
            if foreign(path.name):
                continue
            if path.is_dir():
                real = path.resolve()
                if any(one.is_relative_to(real) for one in above):
                    raise ValueError(f"{path} is a link to {real}, which holds the link: remove it")
                yield from walk(path, (*above, real))
            elif path.is_file():
                yield path
            elif path.is_symlink():
                raise ValueError(f"{path} is a link to {os.readlink(path)}, which is not there: restore or remove it")

    folder = Path(folder)
    return sorted(path.relative_to(folder).as_posix() for path in walk(folder, (folder.resolve(),)))


def folder_digest(path: str | Path) -> str:
    """SHA-256 of the names and bytes of a folder's `files`, as "sha256:<hex>".

    Raises:
        FileNotFoundError: The folder holds no file.
        ValueError: As `files` does.
    """
    path = Path(path)
    names = files(path) if path.is_dir() else []
    if not names:
        raise FileNotFoundError(f"{path} holds no file")
    return f"sha256:{digest_of([[name, file_digest(path / name)] for name in names])}"


def digest_of(content: Any) -> str:
    """Hex digest of a value made of JSON's types, paths and dataclasses; equal values give equal digests."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=_plain).encode()).hexdigest()


def code_digest(patterns: Sequence[str] = ("pipeline/**/*.py", "stages/*.py")) -> str:
    """Hex digest of this project's source files that match the patterns, in the checkout that was imported."""
    root = Path(__file__).resolve().parent.parent
    files = sorted({file for pattern in patterns for file in root.glob(pattern)})
    return digest_of([[file.relative_to(root).as_posix(), file_digest(file)] for file in files])


def other_checkout() -> str | None:
    """A sentence if the code that runs is not the working directory's; None if it is, or the directory has no code."""
    for package in ("pipeline", "stages"):
        own, running = Path.cwd() / package, sys.modules.get(package)
        if running is not None and running.__file__ is not None and (own / "__init__.py").is_file():
            folder = Path(running.__file__).parent
            if not own.samefile(folder):
                return f"this is the code of {folder.parent}, while {own.parent} has its own"
    return None


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"a digest takes JSON's types, paths and dataclasses, got {type(value).__name__}")
