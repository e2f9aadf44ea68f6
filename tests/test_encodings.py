"""Text is UTF-8 whatever the locale: every place that reads or writes a text file, or a program's output, says so."""

import ast
from pathlib import Path

import pytest

from pipeline import artifacts

ROOT = Path(__file__).parent.parent
FILES = sorted(file for package in ("pipeline", "stages", "teacher") for file in (ROOT / package).rglob("*.py"))
TEXT = {"read_text", "write_text", "to_csv", "read_csv"}
EITHER = {"open", "fdopen", "TemporaryFile", "NamedTemporaryFile"}  # text or bytes, as the mode says
PROGRAMS = {"run", "Popen", "check_output"}


def without_encoding(source: str) -> list[int]:
    """The lines of calls that take the encoding of the locale."""
    lines = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        owner, _, name = ast.unparse(call.func).rpartition(".")
        mode = options.get("mode", next((a.value for a in call.args if is_mode(a)), "rb" if "Temp" in name else "r"))
        text = (name in TEXT and owner not in ("", "artifacts")) or (name in EITHER and "b" not in mode)
        text |= name in PROGRAMS and bool({"text", "universal_newlines"} & options.keys())
        if text and owner != "Image" and "encoding" not in options:
            lines.append(call.lineno)
    return lines


def is_mode(argument: ast.expr) -> bool:
    return (
        isinstance(argument, ast.Constant) and isinstance(argument.value, str) and set(argument.value) <= set("rwabx+t")
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_every_text_names_its_encoding(file):
    assert without_encoding(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("call", "found"),
    [
        ("open(path)", True),
        ("open(path, 'wb')", False),
        ("path.open('w', newline='')", True),
        ("path.open(encoding='utf-8')", False),
        ("path.read_text()", True),
        ("artifacts.read_text(path)", False),
        ("tempfile.TemporaryFile()", False),
        ("TemporaryFile('w+')", True),
        ("frame.to_csv(path)", True),
        ("subprocess.run(command, text=True)", True),
        ("subprocess.run(command)", False),
    ],
)
def test_a_call_in_the_encoding_of_the_locale_is_found(call, found):
    assert without_encoding(call) == [1] * found


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_text_is_read_without_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "a.txt").write_text("caf\u00e9\n", encoding=encoding)
    assert artifacts.read_text(tmp_path / "a.txt") == "caf\u00e9\n"


@pytest.mark.parametrize(("encoding", "line"), [("latin-1", 2), ("utf-16", 1)])
def test_a_text_in_another_encoding_is_refused_with_file_and_line(tmp_path, encoding, line):
    (tmp_path / "a.txt").write_text("a\ncaf\u00e9\n", encoding=encoding)
    with pytest.raises(ValueError, match=f"a.txt must be UTF-8 text, and line {line} is not: save it as UTF-8"):
        artifacts.read_text(tmp_path / "a.txt")
