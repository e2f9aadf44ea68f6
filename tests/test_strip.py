"""The strip of the README: its captions, its labels, and its images."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageFont
from safetensors.torch import load_file, save_file

from measurements import strip
from pipeline import backbones
from pipeline.bundle import generating
from pipeline.bundle.manifest import Bundle
from tests.published import write_bundle, write_project
from tests.tiny import make_tiny_flux

COLOURS = [(200, 0, 0), (0, 200, 0)]


def plain(colour, height=8, width=6):
    return np.full((height, width, 3), colour, dtype=np.uint8)


@pytest.mark.parametrize(
    ("latency_ms", "seconds"), [(291.05, "0.29"), (31.3, "0.031"), (1500.0, "1.5"), (12345.0, "12")]
)
def test_seconds_have_two_digits_that_count(latency_ms, seconds):
    assert strip.Line("Teacher", 100, latency_ms, plain((0, 0, 0))[None]).cost == f"100 forwards\n{seconds} s an image"


def test_each_task_is_shown_once():
    assert strip.first_of_each(["b", "a", "b", "c", "a"]) == [0, 1, 3]


def test_lines_fit_the_width_and_lose_no_word():
    font = ImageFont.load_default(20)
    text = "four blue crosses on black beside an unbreakableverylongword"
    lines = strip.wrap(text, font, 120).split("\n")
    assert " ".join(lines) == text
    assert all(font.getlength(line) <= 120 or " " not in line for line in lines) and len(lines) > 2


def test_images_stand_under_their_captions_enlarged_by_whole_pixels():
    images = np.stack([plain(colour) for colour in COLOURS])
    canvas = strip.draw(["one", "two"], [strip.Line(name, 8, 30.0, images) for name in ("Teacher", "Student")])
    height, width = 8 * strip.SCALE, 6 * strip.SCALE
    for row in range(2):
        for column, colour in enumerate(COLOURS):
            left = strip.LABEL + column * (width + strip.GAP)
            top = strip.CAPTION + row * (height + strip.GAP)
            shown = np.asarray(canvas.crop((left, top, left + width, top + height)))
            assert (shown == colour).all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_project(tmp_path_factory.mktemp("strip"))
    make_tiny_flux(folder / "artifacts" / "teacher")
    for file, arms in (
        ("evaluation/metrics.json", {"teacher": {"nfe": 100}, "student": {"nfe": 8}}),
        ("timing/latency.json", {"teacher": {"latency_ms_batch1": 291.0}, "student": {"latency_ms_batch1": 31.3}}),
    ):
        (folder / "artifacts" / file).parent.mkdir(exist_ok=True)
        (folder / "artifacts" / file).write_text(json.dumps({"arms": arms}))
    return folder


def test_the_command_draws_a_caption_of_each_task(folder, tmp_path):
    result = CliRunner().invoke(strip.main, ["--project", str(folder), "--out", str(tmp_path / "strip.png")])
    assert result.exit_code == 0, result.output
    side = 64 * strip.SCALE + strip.GAP
    assert Image.open(tmp_path / "strip.png").size == (strip.LABEL + 6 * side, strip.CAPTION + 2 * side)


def test_without_scenes_there_is_no_strip(folder, tmp_path):
    params = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(params.replace("  height: 64 ", "  height: 128"))
    result = CliRunner().invoke(strip.main, ["--project", str(folder), "--out", str(tmp_path / "strip.png")])
    (folder / "params.yaml").write_text(params)
    assert result.exit_code == 1 and "the checker reads scenes of 64 x 64 pixels, these have 128 x 64" in result.output
    assert not (tmp_path / "strip.png").exists()


def test_the_teacher_starts_from_the_student_s_noise(tmp_path):
    """A student of the teacher's own steps and guidance, whose adapters change nothing, makes the teacher's images."""
    backbone = backbones.load(make_tiny_flux(tmp_path / "teacher"), "cpu")
    sigmas = backbone.schedule(64, 64).sigmas([1.0, 0.5]).tolist()
    folder = write_bundle(
        tmp_path / "bundle",
        teacher_steps=2,
        phases=[
            {"name": "slow", "file": "slow.safetensors", "steps": [0], "u": [1.0], "sigmas": sigmas[:2]},
            {"name": "fast", "file": "fast.safetensors", "steps": [1], "u": [0.5], "sigmas": sigmas[1:]},
        ],
        guidance={
            "teacher_true_cfg_scale": 3.0,
            "student_true_cfg_scale": 3.0,
            "guidance_scale": 3.5,
            "negative_prompt": "",
        },
    )
    for file in folder.glob("*.safetensors"):
        save_file({key: tensor * (".lora_A." in key) for key, tensor in load_file(file).items()}, file)
    bundle, texts, seeds = Bundle.load(folder), ["a red star", "two hearts"], [7, 8]
    made = strip.teacher_images(backbone, bundle, texts, seeds)
    student = generating.generate(backbone, bundle, texts, seeds).numpy()
    assert made.shape == (2, 64, 64, 3) and (made[0] != made[1]).any()
    assert np.abs(made.astype(int) - student).max() <= 1
