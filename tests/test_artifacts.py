"""Artifacts are written whole or not at all, and digests see every byte."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline import artifacts
from pipeline.params import StudentParams
from tests.published import ROOT


@pytest.fixture
def small_files():
    """No file may grow beyond 64 KiB while the test runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_json_round_trip(tmp_path):
    content = {"a": [1, 2.5, None], "b": "ü"}
    artifacts.write_json(tmp_path / "deep" / "file.json", content)
    assert artifacts.read_json(tmp_path / "deep" / "file.json") == content
    assert names(tmp_path / "deep") == ["file.json"]


def test_json_refuses_what_it_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifacts.write_json(tmp_path / "file.json", {"a": float("nan")})
    assert names(tmp_path) == []


def test_a_broken_json_file_is_named(tmp_path):
    (tmp_path / "file.json").write_text("{")
    with pytest.raises(ValueError, match="file.json is not a JSON file"):
        artifacts.read_json(tmp_path / "file.json")


def test_a_file_appears_only_on_success(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        with artifacts.atomic_file(target) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt
    assert target.read_text() == "old" and names(tmp_path) == ["file"]
    with artifacts.atomic_file(target) as partial:
        partial.write_text("new")
    assert target.read_text() == "new" and names(tmp_path) == ["file"]


def test_a_folder_appears_only_on_success(tmp_path):
    target = tmp_path / "folder"
    with artifacts.atomic_dir(target) as partial:
        (partial / "old").touch()
    with pytest.raises(KeyboardInterrupt):
        with artifacts.atomic_dir(target) as partial:
            (partial / "half").touch()
            raise KeyboardInterrupt
    assert names(target) == ["old"] and names(tmp_path) == ["folder"]
    with artifacts.atomic_dir(target) as partial:
        (partial / "new").touch()
    assert names(target) == ["new"] and names(tmp_path) == ["folder"]


def test_a_folder_does_not_inherit_what_a_killed_run_left(tmp_path):
    (tmp_path / ".folder.partial").mkdir()
    (tmp_path / ".folder.partial" / "stale").touch()
    with artifacts.atomic_dir(tmp_path / "folder") as partial:
        assert names(partial) == []


def test_tensors_round_trip_also_when_not_contiguous(tmp_path):
    x = torch.arange(6.0).view(2, 3).T
    artifacts.save_safetensors(tmp_path / "x.safetensors", {"x": x}, {"format": "1"})
    torch.testing.assert_close(load_file(tmp_path / "x.safetensors")["x"], x)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"a": ""}])
def test_one_key_of_metadata_or_none_gives_the_bytes_of_the_stock_writer(tmp_path, metadata):
    tensors = {"b": torch.arange(5.0), "a": torch.arange(3, dtype=torch.bfloat16)}
    artifacts.save_safetensors(tmp_path / "ours", tensors, metadata)
    save_file(tensors, tmp_path / "stock", metadata or {})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "stock").read_bytes()


METADATA = {"b": "1", "a": 'two "quotes" \\ and\nlines', "é": "π", "": "", "{": '{"":"  "}', "long": 3000 * "x"}


def test_metadata_is_read_back_whole_and_lies_in_the_order_of_its_keys(tmp_path):
    tensors = {"b": torch.arange(5.0), "a": torch.arange(3, dtype=torch.bfloat16)}
    artifacts.save_safetensors(tmp_path / "x", tensors, METADATA)
    with safe_open(tmp_path / "x", framework="pt") as opened:
        assert opened.metadata() == METADATA and sorted(opened.keys()) == ["a", "b"]
        assert all(torch.equal(opened.get_tensor(name), tensors[name]) for name in tensors)
    content = (tmp_path / "x").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == sorted(METADATA)


def test_metadata_gives_the_same_bytes_in_every_process(tmp_path):
    """The stock writer's do not: it orders the keys by a hash with a random seed."""
    code = (
        "import sys, torch; from pipeline import artifacts; from safetensors.torch import save_file\n"
        "metadata = {str(i): str(i) for i in range(20)}; tensors = {'x': torch.arange(3.0)}\n"
        "artifacts.save_safetensors(sys.argv[1] + '.ours', tensors, metadata)\n"
        "save_file(tensors, sys.argv[1] + '.stock', metadata)\n"
    )
    for seed in ("1", "2"):
        command = [sys.executable, "-c", code, str(tmp_path / seed)]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}, check=True)
    written = {name: [(tmp_path / f"{seed}.{name}").read_bytes() for seed in "12"] for name in ("ours", "stock")}
    assert written["ours"][0] == written["ours"][1]
    assert written["stock"][0] != written["stock"][1]


def test_tensors_that_do_not_fit_give_the_systems_error_and_leave_nothing(tmp_path, small_files):
    with pytest.raises(OSError) as refusal:
        artifacts.save_safetensors(tmp_path / "x.safetensors", {"x": torch.zeros(100_000)})
    assert refusal.value.errno == errno.EFBIG and "x.safetensors" in refusal.value.filename
    assert names(tmp_path) == []


def test_a_checkpoint_round_trip(tmp_path):
    artifacts.save_torch(tmp_path / "x.pt", {"x": [torch.arange(3)], "n": 1})
    content = torch.load(tmp_path / "x.pt", weights_only=True)
    assert content["n"] == 1 and content["x"][0].tolist() == [0, 1, 2] and names(tmp_path) == ["x.pt"]


def test_a_checkpoint_that_does_not_fit_gives_the_systems_error_and_leaves_nothing(tmp_path, small_files):
    with pytest.raises(OSError) as refusal:
        artifacts.save_torch(tmp_path / "x.pt", torch.zeros(100_000))
    assert refusal.value.errno == errno.EFBIG and "x.pt" in refusal.value.filename
    assert names(tmp_path) == []


def test_file_digest_is_plain_sha256(tmp_path):
    (tmp_path / "empty").touch()
    assert artifacts.file_digest(tmp_path / "empty").startswith("sha256:e3b0c44298fc1c14")


def test_folder_digest_sees_names_and_bytes_but_not_the_place(tmp_path):
    def make(folder, name, text):
        (tmp_path / folder / "sub").mkdir(parents=True)
        (tmp_path / folder / "sub" / name).write_text(text)
        return artifacts.folder_digest(tmp_path / folder)

    assert make("a", "x", "1") == make("b", "x", "1")
    assert len({make("c", "x", "1"), make("d", "y", "1"), make("e", "x", "2")}) == 3


FOREIGN = [
    ".DS_Store",
    "sub/._x",
    "sub/.gitignore",
    "Thumbs.db",
    "sub/Desktop.ini",
    ".cache/huggingface/x.metadata",
    ".huggingface/x",
    "sub/__pycache__/x.pyc",
    "__MACOSX/x",
]


def test_hidden_files_and_those_of_the_operating_system_are_no_content(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x").write_text("1")
    before = artifacts.folder_digest(tmp_path)
    assert before == f"sha256:{artifacts.digest_of([['sub/x', artifacts.file_digest(tmp_path / 'sub/x')]])}"
    for name in FOREIGN:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("note")
    assert artifacts.files(tmp_path) == ["sub/x"] and artifacts.folder_digest(tmp_path) == before


def test_the_digest_of_a_folder_with_links_is_that_of_the_same_files_in_one_place(tmp_path):
    for folder in ("plain/sub/deep", "away/deep", "linked"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("plain/sub/deep/x", "away/deep/x"):
        (tmp_path / file).write_text("1")
    (tmp_path / "linked" / "sub").symlink_to("../away")
    assert artifacts.files(tmp_path / "linked") == ["sub/deep/x"]
    before = artifacts.folder_digest(tmp_path / "linked")
    assert before == artifacts.folder_digest(tmp_path / "plain")
    (tmp_path / "away/deep/x").write_text("2")
    assert artifacts.folder_digest(tmp_path / "linked") != before


@pytest.mark.parametrize(("loop", "target"), [("loop", "."), ("loop", ".."), ("sub/loop", ".."), ("sub/loop", "../..")])
def test_a_link_to_a_folder_that_holds_it_is_named(tmp_path, loop, target):
    (tmp_path / "a" / "sub").mkdir(parents=True)
    (tmp_path / "a" / loop).symlink_to(target)
    with pytest.raises(ValueError, match=f"a/{loop} is a link to .*, which holds the link: remove it"):
        artifacts.files(tmp_path / "a")


def test_links_between_two_folders_that_lead_in_a_circle_are_named(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "next").symlink_to(f"../{other}")
    with pytest.raises(ValueError, match="a/next/next is a link to .*, which holds the link: remove it"):
        artifacts.files(tmp_path / "a")


@pytest.mark.parametrize("target", ["nowhere", "gone"])
def test_a_link_that_leads_nowhere_is_named(tmp_path, target):
    (tmp_path / "gone").symlink_to(target)
    with pytest.raises(ValueError, match=f"gone is a link to {target}, which is not there: restore or remove it"):
        artifacts.folder_digest(tmp_path)
    (tmp_path / "gone").rename(tmp_path / ".#lock")  # an editor's note
    (tmp_path / "x").touch()
    assert artifacts.files(tmp_path) == ["x"]


def test_folder_digest_refuses_nothing(tmp_path):
    (tmp_path / ".DS_Store").touch()
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=f"{folder} holds no file"):
            artifacts.folder_digest(folder)


def test_digest_of_takes_equal_values_for_equal():
    student = StudentParams(true_cfg_scale=1.0, solver="euler")
    assert artifacts.digest_of({"a": 1, "b": [student]}) == artifacts.digest_of({"b": [student], "a": 1})
    assert artifacts.digest_of([student]) != artifacts.digest_of([StudentParams(true_cfg_scale=2.0, solver="euler")])
    assert artifacts.digest_of(Path("a/b")) == artifacts.digest_of("a/b")


def test_digest_of_refuses_what_has_no_stable_form():
    with pytest.raises(TypeError, match="a digest takes JSON's types, paths and dataclasses, got object"):
        artifacts.digest_of([object()])


def test_checkpoints_stay_at_the_main_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "temporary")
    folder = artifacts.checkpoint_dir("train_slow", artifacts.digest_of({"rank": 32}))
    assert folder.is_dir() and folder.is_relative_to(tmp_path / "main" / ".glance" / "checkpoints" / "train_slow")
    assert folder != artifacts.checkpoint_dir("train_slow", artifacts.digest_of({"rank": 16}))


def test_without_dvc_the_root_is_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert artifacts.dvc_root() == Path(os.path.realpath(tmp_path))


def test_code_digest_sees_every_module(tmp_path, monkeypatch):
    for name in ("pipeline/artifacts.py", "pipeline/backbones/flux.py", "stages/evaluate.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(artifacts, "__file__", str(tmp_path / "pipeline" / "artifacts.py"))
    digests = [artifacts.code_digest()]
    for name in ("pipeline/backbones/flux.py", "stages/evaluate.py"):
        (tmp_path / name).write_text("x = 1")
        digests.append(artifacts.code_digest())
    assert len(set(digests)) == 3
    some = artifacts.code_digest(["pipeline/backbones/*.py"])
    (tmp_path / "stages/evaluate.py").write_text("x = 2")
    assert artifacts.code_digest(["pipeline/backbones/*.py"]) == some
    (tmp_path / "pipeline/backbones/flux.py").write_text("x = 2")
    assert artifacts.code_digest(["pipeline/backbones/*.py"]) != some


def test_a_link_leads_to_the_file_behind_a_symbolic_one(tmp_path):
    (tmp_path / "blob").write_text("weights")
    (tmp_path / "name").symlink_to("blob")
    artifacts.link_or_copy(tmp_path / "name", tmp_path / "link")
    assert not (tmp_path / "link").is_symlink() and (tmp_path / "link").samefile(tmp_path / "blob")


def test_a_file_is_copied_where_there_are_no_hard_links(tmp_path, monkeypatch):
    (tmp_path / "blob").write_text("weights")
    monkeypatch.setattr("os.link", lambda source, target: (_ for _ in ()).throw(OSError("cross-device")))
    artifacts.link_or_copy(tmp_path / "blob", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "weights"
    assert not (tmp_path / "copy").samefile(tmp_path / "blob")
