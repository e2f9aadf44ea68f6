"""The prompts that a text file or the scene grammar gives."""

import os
import re
import unicodedata
from pathlib import Path

from pipeline import artifacts
from pipeline.names import meant_path
from pipeline.scenes import captions

LONGEST = 2**20  # bytes of a line; a file with a longer one is no list of prompts
BLANK = ("Cc", "Cf", "Zl", "Zp", "Zs")  # Unicode categories of invisible characters: control, format, separators
ESCAPED = re.compile("[\udc80-\udcff]")  # how Python holds a byte that the locale has no letter for


def load_prompts(prompts_file: str | None, count: int, split: str, seed: int, section: str) -> list[str]:
    """The first `count` prompts of a text file, or captions of the scene grammar.

    Args:
        prompts_file: The file, as `read` takes it; None for the grammar.
        count: How many.
        split: The grammar's split: "train", "validation" or "evaluation".
        seed: Seed of the draw from the grammar.
        section: The section of params.yaml that an error names.

    Raises:
        ValueError: As `read` does, or the file has fewer prompts than `count`.
    """
    if prompts_file is None:
        try:
            return captions.sample(split, count, seed)
        except ValueError as error:
            raise ValueError(f"{section}.{error}") from None  # "prompts must be ..."
    prompts = read(artifacts.named(prompts_file), f"{section}.prompts_file")
    if count > len(prompts):
        raise ValueError(f"{section}.prompts must be at most {len(prompts)} with {prompts_file}, got {count}")
    return prompts[:count]


def read(file: str | Path, key: str) -> list[str]:
    """The prompts of a UTF-8 text file: one per line, in the file's order, repeated ones included.

    Only LF and CRLF end a line. White space and byte order marks around a prompt are removed. Lines without a visible
    character are skipped.

    Args:
        file: The file.
        key: The parameter or option that names it, for the messages.

    Raises:
        ValueError: The file cannot be read, is in another encoding or no text, or has no prompt.
    """
    prompts = []
    try:
        with open(file, "rb") as stream:
            for number, line in enumerate(iter(lambda: stream.readline(LONGEST + 1), b""), start=1):
                prompts.append(clean(_decode(line, f"line {number} of {file}", key)))
    except OSError as error:
        raise ValueError(f"{key} must be a text file, got {file}: {error.strerror}{meant_path(file)}") from None
    prompts = [prompt for prompt in prompts if prompt]
    if not prompts:
        raise ValueError(f"{key} must hold a prompt a line, and {file} is empty")
    return prompts


def clean(text: str) -> str:
    """A prompt without the white space and the byte order marks around it; "" if no character is visible."""
    text = text.strip().strip("\ufeff").strip()
    return "" if all(unicodedata.category(character) in BLANK for character in text) else text


def argument(text: str) -> str:
    """A prompt of the command line, read as UTF-8 in every locale.

    Raises:
        ValueError: The bytes are not UTF-8.
    """
    try:
        return os.fsencode(text).decode("utf-8") if ESCAPED.search(text) else text
    except UnicodeDecodeError:
        raise ValueError(f"a prompt must be UTF-8 text, got {ascii(text)}") from None


def _decode(line: bytes, place: str, key: str) -> str:
    if b"\0" in line:
        raise ValueError(f"{key} must be UTF-8 text, and {place} holds a NUL byte, as UTF-16 does: save it as UTF-8")
    if len(line) > LONGEST:
        raise ValueError(f"{key} must hold a prompt a line, and {place} has more than {LONGEST} bytes")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{key} must be UTF-8 text, and {place} is not: save it as UTF-8") from None
