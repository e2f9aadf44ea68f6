"""Presets rewrite params.yaml and nothing else."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from pipeline import params, presets
from pipeline.cli import main

SHIPPED = Path(__file__).parent.parent / "params.yaml"


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(SHIPPED, tmp_path / "params.yaml"))


def test_the_shipped_parameters_are_the_tiny_preset(file):
    assert presets.apply("tiny", file) == [] and file.read_bytes() == SHIPPED.read_bytes()


@pytest.mark.parametrize("name", ["flux-dev", "qwen-image"])
def test_a_preset_keeps_the_comments_and_going_back_restores_every_byte(file, name):
    changes = presets.apply(name, file)
    text = file.read_text()
    assert ("teacher.dtype", "fp32", "bf16") in changes
    for line in SHIPPED.read_text().splitlines():
        assert line.partition("#")[2] in text, "a comment is lost"
    presets.apply("tiny", file)
    assert file.read_text() == SHIPPED.read_text()


@pytest.mark.parametrize("name", ["flux-dev", "qwen-image"])
def test_a_preset_is_valid_pinned_and_finds_its_prompts(file, name):
    presets.apply(name, file)
    loaded = params.load(file)
    revision = loaded.teacher.hub.rpartition("@")[2]
    assert len(revision) == 40 and int(revision, 16)
    for section in (loaded.trajectories, loaded.evaluation):
        lines = (SHIPPED.parent / section.prompts_file).read_text().splitlines()
        assert len(set(lines)) == len(lines) >= section.prompts
    train, held_out = (set((SHIPPED.parent / s.prompts_file).read_text().splitlines())
                       for s in (loaded.trajectories, loaded.evaluation))  # fmt: skip
    assert not train & held_out


@pytest.mark.parametrize("name", presets.names())
def test_every_value_of_a_preset_stands_in_the_tiny_one_too(name):
    folder = Path(presets.__file__).parent
    keys = {
        preset: {
            (section, key)
            for section, values in YAML(typ="safe").load(folder / f"{preset}.yaml").items()
            for key in values
        }
        for preset in (name, "tiny")
    }
    assert keys[name] == keys["tiny"], "so that going back leaves nothing behind"


def test_the_command_prints_the_difference_and_the_next_step(file):
    result = CliRunner().invoke(main, ["preset", "qwen-image"])
    assert result.exit_code == 0
    assert "teacher.true_cfg_scale: 3.0 -> 4.0" in result.output
    assert "next: `glance fetch` downloads Qwen/Qwen-Image@" in result.output
    again = CliRunner().invoke(main, ["preset", "qwen-image"])
    assert "params.yaml has the values of qwen-image already" in again.output


def test_bad_input_is_one_sentence_and_changes_nothing(file):
    result = CliRunner().invoke(main, ["preset", "sdxl"])
    assert result.exit_code == 1 and "the preset must be one of flux-dev, qwen-image, tiny, got sdxl" in result.output
    assert "got tyni; did you mean tiny?" in CliRunner().invoke(main, ["preset", "tyni"]).output
    file.write_text(file.read_text().replace("steps: 50 ", "steps: 1 "))
    before = file.read_bytes()
    result = CliRunner().invoke(main, ["preset", "qwen-image"])
    assert result.exit_code == 1 and "teacher.steps must be at least 2, got 1" in result.output
    assert file.read_bytes() == before


def test_fetching_without_a_hub_or_onto_a_folder_is_refused(file, tmp_path):
    result = CliRunner().invoke(main, ["fetch"])
    assert result.exit_code == 1 and "teacher.hub must name owner/name@revision to fetch it, got null" in result.output
    presets.apply("qwen-image", file)
    (tmp_path / "models" / "Qwen-Image").mkdir(parents=True)
    result = CliRunner().invoke(main, ["fetch"])
    assert result.exit_code == 1 and "models/Qwen-Image is there already" in result.output


def test_a_hub_that_does_not_answer_is_one_sentence(file, tmp_path, monkeypatch):
    presets.apply("flux-dev", file)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = CliRunner().invoke(main, ["fetch"])
    assert result.exit_code == 1
    assert "the hub does not answer for black-forest-labs/FLUX.1-dev: go online, or copy the folder to" in result.output
    assert not (tmp_path / "models" / "FLUX.1-dev").exists()
