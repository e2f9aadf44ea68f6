"""Checks the weight files of a diffusers folder: whole, in safetensors, under the names that diffusers reads."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError, safe_open

from pipeline import artifacts

PLAIN = re.compile(r"(diffusion_pytorch_)?model\.safetensors(\.index\.json)?")
VARIANT = re.compile(
    r"(?P<stem>(diffusion_pytorch_)?model\.safetensors\.index)\.(?P<of_index>\w+)(?P<json>\.json)"
    r"|(?P<name>(diffusion_pytorch_)?model)\.(?P<of_file>\w+)(?P<suffix>\.safetensors)"
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
PREFERRED = ("fp32", "bf16", "fp16")  # the first one present; bf16 has the range of fp32


@contextmanager
def plain(path: Path, parts: Sequence[str]) -> Iterator[Path]:
    """Yields `path`, or a folder of links to its files where diffusers would not read the names of its weights.

    Args:
        path: The pipeline directory.
        parts: The sub-folders that will be loaded.

    Raises:
        ValueError: As `renamed` does.
    """
    renames = {part: found for part in parts if (found := renamed(path / part))}
    if not renames:
        yield path
        return
    with TemporaryDirectory(prefix="glance-weights-") as scratch:
        view = Path(scratch)
        for entry in path.resolve().iterdir():
            if entry.name not in renames:
                (view / entry.name).symlink_to(entry)
                continue
            (view / entry.name).mkdir()
            for file in entry.iterdir():
                (view / entry.name / renames[entry.name].get(file.name, file.name)).symlink_to(file)
        yield view


def check(folder: Path) -> None:
    """Reads the header of every weight file of a part.

    Raises:
        ValueError: The folder, its weights or one of the weight files is missing, or a file is cut short; or as
            `renamed` does.
    """
    if not folder.is_dir():
        raise ValueError(f"teacher: {folder} does not exist")
    renamed(folder)
    found = (folder / name for name in artifacts.files(folder) if name.endswith(".safetensors"))
    weights = {file.name: file for file in found}
    if not weights and (folder / "config.json").is_file():
        raise ValueError(f"teacher: {folder} holds no weights")
    for file in weights.values():
        try:
            with safe_open(file, framework="pt"):  # reads the header, which states the file's length
                pass
        except SafetensorError as error:
            raise ValueError(f"teacher: {file} is no whole safetensors file ({error})") from error
    for index in folder.glob("*.safetensors.index.json"):
        lacking = sorted(set(artifacts.read_json(index)["weight_map"].values()) - weights.keys())
        if lacking:
            raise ValueError(f"teacher: {folder / lacking[0]} is missing, which {index.name} names")


def renamed(folder: Path) -> dict[str, str]:
    """File names of a part's variant, such as fp16 -> plain names; empty for plain weights or no weights.

    Raises:
        ValueError: The only weights are pickles.
    """
    names = [file.name for file in folder.iterdir() if not artifacts.foreign(file.name)] if folder.is_dir() else []
    if any(PLAIN.fullmatch(name) for name in names):
        return {}
    variants: dict[str, dict[str, str]] = {}
    for match in filter(None, map(VARIANT.fullmatch, names)):
        if match["of_index"]:
            variants.setdefault(match["of_index"], {})[match[0]] = match["stem"] + match["json"]
        else:
            variants.setdefault(match["of_file"], {})[match[0]] = match["name"] + match["suffix"]
    if variants:
        return variants[next((name for name in PREFERRED if name in variants), min(variants))]
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if pickles:
        raise ValueError(
            f"teacher: {folder} holds its weights only as a pickle ({pickles[0]}), which can run a program when it is "
            "read: get or save the weights as .safetensors"
        )
    return {}
