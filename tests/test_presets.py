"""Presets rewrite params.yaml and nothing else."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from pipeline import params, presets
from pipeline.cli import main
from pipeline.flow.rival_levels import rival_levels
from pipeline.flow.schedule import Schedule
from pipeline.presets import published

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
            if section != "rivals"
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


RIVALS = {
    "flux-dev": ["hyper_8", "hyper_16", "turbo_alpha"],
    "qwen-image": ["lightning_4", "lightning_8", "distill_lora", "dmd2_3"],
}


@pytest.mark.parametrize("name", presets.names())
def test_the_published_rivals_of_a_preset_are_for_its_base(file, name):
    assert list(published.known(name)) == RIVALS.get(name, [])
    presets.apply(name, file)
    assert published.add(name, RIVALS.get(name, []), file) == RIVALS.get(name, [])
    loaded = params.load(file)
    assert loaded.rivals == published.known(name) and list(loaded.published) == RIVALS.get(name, [])
    for rival in loaded.published.values():
        assert rival.base == loaded.teacher.hub.partition("@")[0]
        assert len(rival_levels(Schedule(mu=1.0, shift_terminal=0.02), **levels(rival))) == rival.steps + 1


def levels(rival):
    return {key: getattr(rival, key) for key in ("steps", "shift", "terminal", "sigmas")}


def test_a_preset_alone_adds_no_rival_and_says_which_there_are(file):
    result = CliRunner().invoke(main, ["preset", "flux-dev"])
    assert "published rivals, each added by --rival NAME: hyper_8, hyper_16, turbo_alpha" in result.output
    assert params.load(file).rivals == {}


def test_rivals_are_added_with_their_comments_and_nothing_else_changes(file):
    before = SHIPPED.read_text().splitlines()
    result = CliRunner().invoke(main, ["preset", "tiny"])
    assert result.exit_code == 0 and file.read_text() == SHIPPED.read_text()
    assert published.add("qwen-image", ["lightning_4"], file) == ["lightning_4"]
    assert published.add("qwen-image", ["lightning_4", "dmd2_3"], file) == ["dmd2_3"]
    after = file.read_text().splitlines()
    section = next(i for i, line in enumerate(before) if line.startswith("rivals:"))
    added = len(after) - len(before)
    assert after[:section] == before[:section] and after[section + added + 1 :] == before[section + 1 :]
    assert after[section] == before[section].replace("{} ", "   ", 1)
    assert params.load(file).rivals.keys() == {"lightning_4", "dmd2_3"}
    assert "    shift: 3.0 # the levels 1, 0.9, 0.75, 0.5" in after
    unchanged = file.read_bytes()
    assert published.add("qwen-image", ["dmd2_3"], file) == [] and file.read_bytes() == unchanged
    result = CliRunner().invoke(main, ["preset", "flux-dev", "--rival", "hyper_8"])
    assert result.exit_code == 0 and "rivals.hyper_8: added" in result.output
    assert params.load(file).published.keys() == {"hyper_8"}, "the others are for another base"


@pytest.mark.parametrize(
    ("preset", "name", "message"),
    [
        (
            "qwen-image",
            "lightning",
            "--rival must be one of lightning_4, lightning_8, distill_lora, dmd2_3 for qwen-im",
        ),
        ("tiny", "lightning_4", "--rival must be one of nothing for tiny, got 'lightning_4'"),
    ],
)
def test_an_unknown_rival_is_one_sentence(file, preset, name, message):
    result = CliRunner().invoke(main, ["preset", preset, "--rival", name])
    assert result.exit_code == 1 and message in result.output


def test_an_entry_that_was_changed_is_not_overwritten(file):
    published.add("flux-dev", ["hyper_8"], file)
    file.write_text(file.read_text().replace("scale: 0.125", "scale: 0.2"))
    with pytest.raises(ValueError, match="rivals.hyper_8 of .*params.yaml must be absent or as in flux-dev, got {'we"):
        published.add("flux-dev", ["hyper_8"], file)


@pytest.mark.parametrize("section", ["rivals: {x: {images: y}} ", "rivals:\n    x: {images: y} "])
def test_a_section_that_is_written_otherwise_is_not_rewritten(file, section):
    file.write_text(file.read_text().replace("rivals: {} ", section))
    with pytest.raises(
        ValueError, match="rivals of .*params.yaml must be {} or a block of lines, indented by 2, for a preset"
    ):
        published.add("flux-dev", ["hyper_8"], file)
