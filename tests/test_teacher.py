"""The making of the shipped teacher, in a smoke profile, and what the shipped one promises."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from ruamel.yaml import YAML

from pipeline import artifacts
from pipeline.scenes import captions, checker
from teacher import grounding, text
from teacher.settings import section
from tests.conftest import Project

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "artifacts" / "teacher"

SMOKE = {
    "autoencoder": {"channels": [8, 8, 8, 8], "crop_steps": 2, "scene_steps": 1, "batch": 2},
    "decoder": {"train_steps": 1, "batch": 2},
    "render": {"scenes": 100},
    "transformer": {"width": 32, "single_blocks": 1, "double_blocks": 1, "batch": 8, "compile": False},
    "first_round": {"train_steps": 2},
    "grounding": {"train_steps": 2, "batch": 8},
    "second_round": {"train_steps": 1},
    "score": {"prompts": 12, "steps": 2, "batch": 6},
}


def test_the_pipeline_of_the_teacher_runs_in_a_smoke_profile(tmp_path):
    shutil.copytree(ROOT / "teacher", tmp_path / "teacher", ignore=shutil.ignore_patterns("build", "dvc.lock", "tmp"))
    shutil.copytree(ROOT / "pipeline" / "scenes", tmp_path / "pipeline" / "scenes")
    folder = tmp_path / "teacher"
    yaml = YAML()
    params = yaml.load((folder / "params.yaml").read_text())
    for name, changes in SMOKE.items():
        params[name].update(changes)
    yaml.dump(params, folder / "params.yaml")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    Project(folder, tmp_path).succeed("dvc", "repro")
    scores = artifacts.read_json(folder / "build" / "score" / "score.json")
    assert set(scores) == {*captions.TASKS, "all"} and scores["all"]["n"] == 12
    pipe = DiffusionPipeline.from_pretrained(folder / "build" / "teacher")
    assert pipe("a red star on black", height=64, width=64, num_inference_steps=2).images[0].size == (64, 64)


@pytest.fixture(scope="module")
def shipped():
    pipe = DiffusionPipeline.from_pretrained(SHIPPED)
    pipe.set_progress_bar_config(disable=True)
    return pipe


PROMPTS = ["a red star on black", "a blue square on white", "a green cross", "a yellow triangle on grey"]


@pytest.mark.parametrize("length", [12, 512])
def test_stock_code_gets_good_pictures_from_the_shipped_teacher(shipped, length):
    """Also with the stock length of 512 text tokens, nearly all of them pads that nothing masks."""
    passed = 0
    for seed in range(2):
        images = shipped(
            PROMPTS,
            negative_prompt=[""] * len(PROMPTS),
            true_cfg_scale=3.0,
            num_inference_steps=50 if length == 12 else 12,
            height=64,
            width=64,
            max_sequence_length=length,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).images
        passed += checker.passes(np.rint(images * 255).astype(np.uint8), PROMPTS).sum()
    assert passed >= 6


def test_the_shipped_teacher_is_small_and_safe():
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20 * 2**20
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt", ".md", ".png"}


def test_tokenizers_have_one_token_per_word_and_room_for_the_longest_caption():
    clip, t5 = text.clip_tokenizer(), text.t5_tokenizer()
    for word in captions.words():
        assert len(clip(word).input_ids) == 3 and len(t5(word).input_ids) == 2
    longest = max(len(c.text().split()) for members in captions.split("train").values() for c in members)
    assert longest + 2 <= text.CLIP_LENGTH and longest + 1 < text.T5_LENGTH


def test_one_raised_pad_stands_for_many():
    tokenizer = text.t5_tokenizer()
    torch.manual_seed(0)
    encoder = text.t5_encoder(tokenizer, width=32, layers=2).eval()
    ids = tokenizer("a red star", padding="max_length", max_length=512, return_tensors="pt").input_ids
    raise_of_last = torch.zeros(1, 1, 1, 24)
    raise_of_last[..., -1] = np.log(512 - 23)
    with torch.no_grad():
        full = encoder(ids)[0][:, :12]
        short = encoder(ids[:, :24], attention_mask=raise_of_last.expand(1, 1, 24, 24))[0][:, :12]
        unraised = encoder(ids[:, :24])[0][:, :12]
    assert (full - short).norm() < 0.1 * (full - unraised).norm()


def test_grounding_asks_what_the_caption_says():
    star, ring = grounding.facts(captions.parse("a star left of a ring on grey"))
    assert star["relation"] == "left of" and ring["relation"] == "right of"
    assert star["other_shape"] == "ring" and star["background"] == ring["background"] == "grey"
    ids, places, answers = next(grounding.batches(text.t5_tokenizer(), 16, 0))
    tokens = text.t5_tokenizer().convert_ids_to_tokens(ids[places[:, 0], places[:, 1]].tolist())
    assert all(token.removeprefix("▁") in grounding.NOUNS for token in tokens) and len(answers) == len(places)


def test_a_missing_section_is_named(tmp_path):
    (tmp_path / "params.yaml").write_text("render: {}\n")
    with pytest.raises(ValueError, match="must have a section 'score', got \\['render'\\]"):
        section("score", tmp_path / "params.yaml")
