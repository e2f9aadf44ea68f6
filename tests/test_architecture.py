"""The library's structure: folders are ideas, imports go down, and no file is too long to read at once."""

import ast
from pathlib import Path

import pytest

from tests.test_dvc import ROOT, imported

LEVELS = [  # from the top down: what stands in a row may import what stands in the rows below it
    "cli",
    "diagnosis",
    "ablations benchmarking checking demo hub shipping",
    "registry",
    "evaluation memory",
    "bundle training",
    "recording",
    "presets console partition",
    "params families",
    "backbones rival_params",
    "adapters objectives param_checks",
    "flow image_archives image_files leftovers prompts rwlock styles",
    "artifacts faults names out_of_memory progress scenes",
]
RANKS = {room: len(LEVELS) - row for row, rooms in enumerate(LEVELS) for room in rooms.split()}
LIBRARY = ROOT / "pipeline"


def room(parts: tuple[str, ...]) -> str:
    """The folder of the library, or the module beside the folders, that a path or a dotted name lies in."""
    return parts[0].removesuffix(".py")


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if path != LIBRARY / "__init__.py")


@pytest.mark.parametrize("file", files(LIBRARY), ids=lambda file: file.relative_to(LIBRARY).as_posix())
def test_imports_go_down(file):
    own = room(file.relative_to(LIBRARY).parts)
    for name in imported(ast.parse(file.read_text(encoding="utf-8"))):
        package, *rest = name.split(".")
        assert package == "pipeline", f"the library imports {name}"
        other = room(tuple(rest)) if rest else own
        if other in RANKS and other != own:
            assert RANKS[other] < RANKS[own], f"{own} imports {name}, which stands no lower"


def test_every_folder_and_module_has_its_level():
    rooms = {room(file.relative_to(LIBRARY).parts) for file in files(LIBRARY)}
    assert rooms == RANKS.keys()


def test_the_picture_of_the_architecture_shows_these_levels():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    shown = [row.replace("`", "").replace(",", "") for row in rows]
    assert [row.split() for row in shown] == [sorted(rooms.split()) for rooms in LEVELS]


def test_stage_files_are_short():
    assert not [file.name for file in (ROOT / "stages").glob("[a-z]*.py") if len(file.read_text().splitlines()) >= 40]


@pytest.mark.parametrize("file", files(LIBRARY), ids=lambda file: file.relative_to(LIBRARY).as_posix())
def test_a_module_is_at_most_300_lines(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 300
