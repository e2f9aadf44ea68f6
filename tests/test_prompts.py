import os
import threading

import pytest

from pipeline import prompts

MARK = b"\xef\xbb\xbf"


@pytest.fixture
def written(tmp_path):
    """Writes the bytes of a prompts file and returns its path."""

    def write(content: bytes):
        file = tmp_path / "prompts.txt"
        file.write_bytes(content)
        return file

    return write


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a red star\nthree blue hearts\n", ["a red star", "three blue hearts"]),
        (b"a red star\r\nthree blue hearts", ["a red star", "three blue hearts"]),
        (
            MARK + b"a red star\n" + MARK + b"two hearts\n",
            ["a red star", "two hearts"],
        ),  # two files, one after the other
        (MARK + MARK + b" a red star\r\r\n", ["a red star"]),
        (b"a star\na star\n\na star\n", ["a star", "a star", "a star"]),
        ("caf\u00e9\n\u661f\n".encode(), ["caf\u00e9", "\u661f"]),
        (b"  a star\t\n \n\t\n", ["a star"]),
    ],
)
def test_each_line_is_a_prompt_without_marks_and_space_around_it(written, content, expected):
    assert prompts.read(written(content), "key") == expected


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\r", "\x1c", "\x1d", "\x1e"])
def test_only_line_feeds_end_a_line(written, separator):
    assert prompts.read(written(f"a red{separator}star\ntwo\n".encode()), "key") == [f"a red{separator}star", "two"]


@pytest.mark.parametrize(
    "blank", ["\u200b", "\u200c\u200d", "\u2060", "\ufeff", "\u00a0", "\u3000", "\u00ad", "\u200e \u202f", "\x07"]
)
def test_a_line_on_which_nothing_can_be_seen_is_no_prompt(written, blank):
    assert prompts.read(written(f"a star\n{blank}\ntwo\n".encode()), "key") == ["a star", "two"]


def test_joiners_inside_a_prompt_stay(written):
    family = "a \U0001f468\u200d\U0001f469\u200d\U0001f467 in \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    assert prompts.read(written(family.encode()), "key") == [family]


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-16", "line 1 of {} holds a NUL byte, as UTF-16 does"),
        ("utf-16-le", "line 1 of {} holds a NUL byte, as UTF-16 does"),
        ("utf-16-be", "line 1 of {} holds a NUL byte, as UTF-16 does"),
        ("utf-32", "line 1 of {} holds a NUL byte, as UTF-16 does"),
        ("latin-1", "line 2 of {} is not"),
        ("cp1252", "line 2 of {} is not"),
    ],
)
def test_another_encoding_is_refused_with_file_and_line(written, encoding, said):
    file = written("a star\na caf\u00e9 in red\n".encode(encoding))
    with pytest.raises(ValueError) as refusal:
        prompts.read(file, "--prompts-file")
    assert str(refusal.value) == f"--prompts-file must be UTF-8 text, and {said.format(file)}: save it as UTF-8"


def test_utf_16_without_latin_letters_is_refused(written):
    with pytest.raises(ValueError, match="line 1 of .* is not: save it as UTF-8"):
        prompts.read(written("\u4e2d\u6587\n".encode("utf-16")), "key")


def test_what_is_no_list_of_prompts_is_refused(tmp_path, written):
    with pytest.raises(
        ValueError, match=f"must hold a prompt a line, and line 2 of .* has more than {prompts.LONGEST} b"
    ):
        prompts.read(written(b"a star\n" + b"x" * (prompts.LONGEST + 1)), "key")
    assert len(prompts.read(written(b"x" * prompts.LONGEST), "key")[0]) == prompts.LONGEST
    with pytest.raises(ValueError, match="key must hold a prompt a line, and .*prompts.txt is empty"):
        prompts.read(written(MARK + b"\n \n"), "key")
    with pytest.raises(ValueError, match="key must be a text file, got .*nowhere.txt: No such file"):
        prompts.read(tmp_path / "nowhere.txt", "key")
    with pytest.raises(ValueError, match=f"key must be a text file, got {tmp_path}: Is a directory"):
        prompts.read(tmp_path, "key")


def test_a_pipe_is_read_as_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"a star\ntwo\n",))
    writer.start()
    assert prompts.read(tmp_path / "pipe", "key") == ["a star", "two"]
    writer.join()


def test_recording_and_evaluation_read_their_file_alike(written):
    file = str(written(MARK + "a\u2028star\r\n\u200b\r\ntwo\r\n".encode()))
    expected = ["a\u2028star", "two"]
    assert prompts.load_prompts(file, 2, "train", 0, "trajectories") == expected
    assert prompts.load_prompts(file, 2, "evaluation", 0, "evaluation") == expected


def test_a_prompt_of_the_command_line_is_the_same_in_every_locale():
    assert prompts.argument("caf\u00e9") == prompts.argument("caf\udcc3\udca9") == "caf\u00e9"
    with pytest.raises(ValueError, match=r"a prompt must be UTF-8 text, got 'caf\\udce9'"):
        prompts.argument("caf\udce9")
