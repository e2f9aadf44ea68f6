"""Many images: each is written when its batch is done, a stopped run goes on, and a picture says what it is made of."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from pipeline import backbones, cli, image_files
from pipeline.bundle import generating
from pipeline.bundle.manifest import Bundle, bundle_digest
from pipeline.cli.images import LAST_SEED
from tests.published import ROOT, write_bundle
from tests.tiny import make_tiny_flux

PROMPTS = ["a red star", "two stars", "a red star", "a caf\u00e9", "\u661f"]
PATIENCE_S = 600


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny_flux(tmp_path_factory.mktemp("base") / "teacher")


@pytest.fixture(scope="module")
def backbone(base):
    return backbones.load(base, "cpu")


@pytest.fixture
def project(tmp_path, monkeypatch, base):
    """A folder with a bundle of a tiny teacher and a file of PROMPTS, as the working directory."""
    write_bundle(tmp_path / "artifacts/bundle", base_digest=backbones.digest(base))
    (tmp_path / "artifacts/teacher").symlink_to(base)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def generate(*arguments, file="prompts.txt", code=0):
    """Runs `glance generate --batch 2` on a file; what it prints and what it complains about."""
    options = ["generate", "--prompts-file", file, "--batch", 2, *arguments]
    done = CliRunner().invoke(cli.main, [str(option) for option in options])
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr


def start(*arguments, **env):
    """The same as a process of its own."""
    command = [sys.executable, "-m", "pipeline.cli", "generate", "--prompts-file", "prompts.txt", *arguments]
    path = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        env={**os.environ, **path, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell's background job ignores
    )


def contents(folder):
    """The bytes of every file in a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def inodes(folder):
    """The number of every file in a folder, hidden ones too: one that is written anew has another."""
    return {path.name: path.stat().st_ino for path in Path(folder).iterdir()}


def fail_at(monkeypatch, call, error):
    """Makes one call of `generating.generate` fail; the list gets the prompts of every call."""
    calls, whole = [], generating.generate

    def generate(backbone, bundle, prompts, seeds, **options):
        calls.append(prompts)
        if len(calls) == call:
            raise error
        return whole(backbone, bundle, prompts, seeds, **options)

    monkeypatch.setattr(generating, "generate", generate)
    return calls


def test_images_come_batch_by_batch_with_the_pixels_of_one_batch(project, backbone):
    bundle = Bundle.load("artifacts/bundle")
    made = generating.images(backbone, bundle, PROMPTS, seed=5, batch=2)
    for first in (0, 2, 4):
        part = PROMPTS[first : first + 2]
        expected = generating.generate(backbone, bundle, part, list(range(5 + first, 5 + first + len(part))))
        for number, image in enumerate(expected.numpy(), start=first):
            got = next(made)
            assert got[0] == number
            np.testing.assert_array_equal(got[1], image)
    assert list(made) == []


def test_no_batch_is_made_before_it_is_asked_for(project, backbone, monkeypatch):
    calls = fail_at(monkeypatch, None, None)
    made = generating.images(backbone, Bundle.load("artifacts/bundle"), PROMPTS, batch=2)
    next(made), next(made)
    assert calls == [PROMPTS[:2]]


def test_what_is_skipped_changes_no_other_image(project, backbone, monkeypatch):
    bundle = Bundle.load("artifacts/bundle")
    whole = dict(generating.images(backbone, bundle, PROMPTS, batch=2))
    calls = fail_at(monkeypatch, None, None)
    rest = dict(generating.images(backbone, bundle, PROMPTS, batch=2, skip={0, 1, 2}))
    assert calls == [PROMPTS[2:4], PROMPTS[4:]] and list(rest) == [3, 4]
    for number, image in rest.items():
        np.testing.assert_array_equal(image, whole[number])


def test_a_picture_says_what_it_is_made_of(project):
    generate("--seed", 7)
    texts = Image.open("images/003-a-caf.png").text
    assert json.loads(texts["glance"]) == {
        "prompt": "a caf\u00e9",
        "seed": 10,
        "bundle": bundle_digest("artifacts/bundle"),
        "base": backbones.digest("artifacts/teacher"),
        "model": "teacher",
        "quantization": "none",
        "dtype": "fp32",
        "path": "consistent",
        "solver": "euler",
        "steps": 2,
        "nfe": 2,
        "true_cfg_scale": 1.0,
        "guidance_scale": 3.5,
        "negative_prompt": "",
        "height": 64,
        "width": 64,
    }
    assert texts["parameters"] == (
        "a caf\u00e9\nSteps: 2, Sampler: Euler, CFG scale: 1.0, Distilled CFG Scale: 3.5, Seed: 10, Size: 64x64, "
        f"Model: teacher, Glance bundle: {bundle_digest('artifacts/bundle')[7:19]}"
    )
    assert Image.open("images/004.png").text["parameters"].startswith("\u661f\nSteps: 2")
    first = contents("images")
    generate("--seed", 7)
    assert contents("images") == first


def test_a_negative_prompt_is_named_where_it_counts(project):
    guidance = {"teacher_true_cfg_scale": 3.0, "guidance_scale": 3.5, "negative_prompt": "blur"}
    for scale, line in ((2.0, "\nNegative prompt: blur\nSteps: 2, "), (1.0, "a star\nSteps: 2, ")):
        write_bundle(project / "pair", guidance=guidance | {"student_true_cfg_scale": scale}, base_model="a/b: c")
        origin = generating.Origin.of(Bundle.load("pair"))
        shown = origin.texts("a star", 0)["parameters"]
        assert line in shown and 'Model: "b: c", ' in shown and origin.nfe == 2 * scale


def test_one_file_says_it_too_and_a_grid_does_not(project):
    (project / "one.txt").write_text("a red star")
    generate("--out", "one.png", file="one.txt")
    generate("--out", "all.png")
    generate()
    alone, among_others = (Image.open(file) for file in ("one.png", "images/000-a-red-star.png"))
    assert alone.text == among_others.text
    rounding = np.asarray(alone).astype(int) - np.asarray(
        among_others
    )  # a kernel may round otherwise for another batch
    assert np.abs(rounding).max() <= 1
    assert Image.open("all.png").text == {}


def test_a_batch_that_fails_leaves_the_pictures_before_it_and_resume_makes_the_others(project, monkeypatch):
    generate("--out", "whole", "--grid")
    with monkeypatch.context() as patch:
        fail_at(patch, 2, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
        _, said = generate("--out", "parts", "--grid", code=1)
    assert said.splitlines()[-1].startswith("Error: out of memory, the GPU is too small: add --offload")
    assert said.endswith("; 2 of 5 images are in parts, and --resume goes on from there\n")
    assert sorted(contents("parts")) == ["000-a-red-star.png", "001-two-stars.png"]

    calls = fail_at(monkeypatch, None, None)
    printed, said = generate("--out", "parts", "--grid", "--resume")
    assert calls == [PROMPTS[2:4], PROMPTS[4:]]
    assert said.endswith("2 images kept, 3 made\n")
    assert printed.split() == [f"parts/{name}.png" for name in ("002-a-red-star", "003-a-caf", "004", "grid")]
    assert contents("parts") == contents("whole"), "the bytes of a run that was not stopped"


def test_a_full_disk_leaves_the_pictures_that_fit(project, monkeypatch):
    generate("--out", "whole")
    largest = max(contents("whole").items(), key=lambda item: len(item[1]))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(largest[1]) - 1, before[1]))
    try:
        _, said = generate("--out", "small", code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"no space left to write at small/{largest[0]}" in said and "run the command again" in said
    assert contents("small") == {name: data for name, data in contents("whole").items() if name < largest[0]}


def test_resume_makes_nothing_and_loads_no_model_where_all_is_there(project, monkeypatch):
    generate("--grid")
    first = contents("images")
    Path("images/grid.png").unlink()
    monkeypatch.setattr(backbones, "load", None)
    printed, said = generate("--grid", "--resume")
    assert (printed, said) == ("images/grid.png\n", "5 images kept, 0 made\n")
    assert contents("images") == first


def test_resume_in_an_empty_folder_makes_all(project):
    assert generate("--resume")[1].endswith("0 images kept, 5 made\n")


def cut(file):
    file.write_bytes(file.read_bytes()[:-20])


def strip(file):
    image_files.save(image_files.read(file), file)


@pytest.mark.parametrize("spoil", [Path.unlink, cut, strip])
def test_resume_makes_a_picture_that_is_missing_broken_or_says_nothing(project, spoil):
    generate()
    first = contents("images")
    spoil(Path("images/002-a-red-star.png"))
    assert generate("--resume")[1].endswith("4 images kept, 1 made\n")
    assert contents("images") == first


@pytest.mark.parametrize("change", ["seed", "prompt", "bundle", "quantization"])
def test_resume_keeps_no_picture_of_another_origin(project, monkeypatch, change):
    generate()
    first = contents("images")
    options = []
    if change == "seed":
        options = ["--seed", 1]
    elif change == "prompt":
        Path("prompts.txt").write_text("\n".join(f"{prompt}!" for prompt in PROMPTS), encoding="utf-8")
    elif change == "bundle":
        write_bundle(project / "artifacts/bundle", seed=1, base_digest=backbones.digest("artifacts/teacher"))
    else:
        load = backbones.load
        monkeypatch.setattr(backbones, "load", lambda teacher, *a, **options: load(teacher.path, *a, **options))
        options = ["--quantization", "int8"]
    assert generate("--resume", *options)[1].endswith("0 images kept, 5 made\n")
    assert contents("images").keys() == first.keys()
    assert all(first[name] != data for name, data in contents("images").items())


def test_without_resume_everything_is_made_anew(project, monkeypatch):
    generate()
    calls = fail_at(monkeypatch, None, None)
    generate()
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "--out", "all.png"], "--resume needs a folder as --out, got all.png"),
        (["--out", "prompts"], "--out must be a folder or a .png file, got prompts, a file"),
        (["--out", "folder.png"], "--out must be a folder or a .png file, got folder.png, a folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_model_is_loaded(project, monkeypatch, arguments, message):
    Path("prompts").touch()
    Path("folder.png").mkdir()
    monkeypatch.setattr(backbones, "load", None)
    assert generate(*arguments, code=1)[1] == f"Error: {message}\n"


@pytest.mark.parametrize("options", [["--out", "all.png"], ["--grid"]])
def test_a_grid_of_too_many_is_refused_before_the_model_is_loaded(project, monkeypatch, options):
    monkeypatch.setattr(backbones, "load", None)
    monkeypatch.setattr(image_files, "GRID_PIXELS", 5 * 64**2)
    assert "a grid must have at most 20480 pixels, got 24576 of 5 images" in generate(*options, code=1)[1]


def test_the_largest_seed_counts_up(project):
    generate("--seed", LAST_SEED)
    assert json.loads(Image.open("images/004.png").text["glance"])["seed"] == LAST_SEED + 4
    assert "is not in the range" in generate("--seed", LAST_SEED + 1, code=2)[1]


def stop_after(process, folder, count, number):
    """Signals a process when a folder has so many pictures; the last line that it says."""
    end = time.monotonic() + PATIENCE_S
    while len(list(Path(folder).glob("[0-9]*.png"))) < count:
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < end, "no pictures came"
        time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE_S)
    return said.decode()


@pytest.mark.slow  # two processes that load the model and are stopped
def test_a_stopped_run_leaves_whole_pictures_and_resume_goes_on(project):
    Path("prompts.txt").write_text("a red star on black\n" * 4000)
    stopped = start()
    said = stop_after(stopped, "images", 3, signal.SIGINT)
    first = inodes("images")
    assert stopped.returncode == 130 and "Traceback" not in said
    assert said.splitlines()[-1] == (
        f"interrupted; {len(first)} of 4000 images are in images, and --resume goes on from there"
    )
    assert all(re.fullmatch(r"\d{4}-a-red-star-on-black\.png", name) for name in first)

    stopped = start("--resume")
    said = stop_after(stopped, "images", len(first) + 3, signal.SIGTERM)
    second = inodes("images")
    assert stopped.returncode == 143 and said.splitlines()[-1].startswith(f"interrupted; {len(second)} of 4000 images")
    assert second.items() >= first.items(), "what was there is not written again"
    assert all(image_files.texts(Path("images", name)) for name in second), "every file is a whole picture"


def test_stopped_before_the_first_picture_it_says_so(project, monkeypatch):
    fail_at(monkeypatch, 1, KeyboardInterrupt())
    assert generate(code=130)[1].endswith("interrupted; 0 of 5 images are in images, and --resume goes on from there\n")
    fail_at(monkeypatch, 1, KeyboardInterrupt())
    assert generate("--out", "all.png", code=130)[1].endswith("interrupted; all.png is not written\n")
    assert not Path("images").exists() and not Path("all.png").exists()


def test_a_byte_order_mark_changes_no_picture(project):
    generate("--out", "plain")
    Path("marked.txt").write_bytes(b"\xef\xbb\xbf" + Path("prompts.txt").read_bytes().replace(b"\n", b"\r\n"))
    generate("--out", "marked", file="marked.txt")
    assert contents("marked") == contents("plain")


def test_another_encoding_is_one_sentence_with_file_and_line(project):
    Path("old.txt").write_bytes(b"a star\na caf\xe9 in red\n")
    sentence = "Error: --prompts-file must be UTF-8 text, and line 2 of old.txt is not: save it as UTF-8\n"
    assert generate(file="old.txt", code=1)[1] == sentence


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}


@pytest.mark.slow  # two processes, of which one loads the model
def test_every_locale_makes_the_same_pictures(project):
    generate("\u661f", "--out", "plain-\u00e9")
    process = start("\u661f", "--batch", "2", "--out", "plain-\u00e9/again", **ASCII)
    printed, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0 and b"Traceback" not in said, said.decode()
    assert printed.decode().splitlines()[0] == "plain-\u00e9/again/000.png"
    again = contents("plain-\u00e9/again")
    assert again == {file.name: file.read_bytes() for file in Path("plain-\u00e9").glob("*.png")} and len(again) == 6
    process = start("--resume", "--out", "plain-\u00e9/x.png", **ASCII)
    assert process.communicate(timeout=PATIENCE_S)[1].decode().endswith(", got plain-\u00e9/x.png\n")
