"""The example of docs/your_style.md: the style, its LoRA, its numbers, and the page's commands as they are written."""

import json
import re
import shlex
import shutil
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image
from ruamel.yaml import YAML

from examples.your_style import compare, look, train
from pipeline import artifacts, backbones
from pipeline.backbones.teacher import Teacher
from pipeline.scenes import captions, checker
from pipeline.scenes.renderer import layout, render
from pipeline.styles import Lora
from tests.conftest import SHORT, Project
from tests.test_docs import FENCE, ROOT
from tests.tiny import MAX_SEQUENCE_LENGTH, make_tiny_flux

PAGE = ROOT / "docs" / "your_style.md"
CUT = {  # what of the page's commands is made smaller
    "python -m examples.your_style.train": "--pictures 8 --train-steps 4 --batch 4 --rank 2",
    "python -m examples.your_style.compare": "--prompts 6",
}


def test_the_style_twice_is_the_caption_itself_and_every_picture_shows_it():
    texts = captions.sample("evaluation", 60, 3)
    for parsed in map(captions.parse, texts):
        styled = look.negative(parsed)
        assert look.negative(styled) == parsed and captions.parse(styled.text()) == styled
    assert look.negative(captions.parse("a red star on white")).text() == "a cyan star on black"


def test_the_pictures_belong_to_training_captions_and_the_seed_chooses_them():
    texts, images = zip(*islice(look.pictures(4), 60), strict=True)
    assert {caption.text() for those in captions.split("train").values() for caption in those} >= set(texts)
    assert compare.score(np.stack(images), texts) > 0.95 > 0.5 > checker.passes(np.stack(images), list(texts)).mean()
    again = [text for text, _ in islice(look.pictures(4), 60)]
    assert again == list(texts) != [text for text, _ in islice(look.pictures(5), 60)]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return make_tiny_flux(tmp_path_factory.mktemp("style") / "teacher")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty project as the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loras").mkdir()
    return tmp_path


@pytest.fixture
def pipe(teacher):
    return FluxPipeline.from_pretrained(teacher)


def trained(pipe, out, train_steps=6, **changes):
    """The file of a short training."""
    texts, images = zip(*islice(look.pictures(0), 8), strict=True)
    given = train.encode(pipe, texts, np.stack(images), MAX_SEQUENCE_LENGTH)
    train.train(pipe, replace(given, **changes), rank=2, train_steps=train_steps, batch=4, rate=1e-2, seed=0)
    train.save(pipe, out)
    return out


def test_scenes_are_encoded_as_the_teacher_decodes_and_prompts_as_the_pipeline_does(pipe, teacher):
    texts, images = zip(*islice(look.pictures(0), 3), strict=True)
    given = train.encode(pipe, texts, np.stack(images), MAX_SEQUENCE_LENGTH)
    backbone = backbones.load(teacher, "cpu", ("text", "vae"))
    ours = backbone.encode(list(texts), MAX_SEQUENCE_LENGTH)
    torch.testing.assert_close(given.states[given.caption], ours["prompt_embeds"])
    torch.testing.assert_close(given.pooled[given.caption], ours["pooled_prompt_embeds"])
    torch.testing.assert_close(given.pooled[:1], backbone.encode([""], MAX_SEQUENCE_LENGTH)["pooled_prompt_embeds"])
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        decoded = pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mean).sample
    shown = ((decoded + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 1)
    assert (backbone.decode(given.x_0, 64, 64).float() - shown).abs().max() <= 1


def test_diffusers_and_this_project_read_the_same_whole_file_which_a_seed_makes_again(pipe, teacher, here):
    file = trained(pipe, Path("loras/one.safetensors"))
    assert [path.name for path in Path("loras").iterdir()] == ["one.safetensors"]
    ours = backbones.load(Teacher(path=teacher, loras=(Lora("one.safetensors"),)), "cpu", ("transformer",)).transformer
    plain, stock = (FluxPipeline.from_pretrained(teacher) for _ in range(2))
    stock.load_lora_weights("loras", weight_name="one.safetensors")
    stock.fuse_lora(components=["transformer"])
    stock.unload_lora_weights()
    before, theirs = plain.transformer.state_dict(), stock.transformer.state_dict()
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, theirs[name])
        linear = name.endswith(".weight") and weight.ndim == 2
        assert torch.equal(weight, before[name]) != linear, "every linear layer has learned, and nothing else"
    again = trained(FluxPipeline.from_pretrained(teacher), Path("loras/two.safetensors"))
    assert artifacts.file_digest(again) == artifacts.file_digest(file)


def test_training_stops_at_a_loss_that_is_not_finite(pipe, here):
    with pytest.raises(ValueError, match="the loss must stay finite, got nan at train step 0"):
        trained(pipe, Path("loras/one.safetensors"), x_0=torch.full((8, 16, 32), torch.nan))
    assert not list(Path("loras").iterdir())


def test_training_lowers_the_loss(pipe, here):
    """Over the same noise: a LoRA that has learned is nearer to noise - x_0 than the bare teacher."""
    torch.manual_seed(0)
    texts, images = zip(*islice(look.pictures(0), 8), strict=True)
    given = train.encode(pipe, texts, np.stack(images), MAX_SEQUENCE_LENGTH)
    noise = torch.randn(given.x_0.shape)

    @torch.no_grad()
    def loss():
        v = pipe.transformer(
            hidden_states=0.5 * (given.x_0 + noise),
            timestep=torch.full((8,), 0.5),
            pooled_projections=given.pooled[given.caption],
            encoder_hidden_states=given.states[given.caption],
            txt_ids=torch.zeros(MAX_SEQUENCE_LENGTH, 3),
            img_ids=pipe._prepare_latent_image_ids(1, 4, 4, torch.device("cpu"), torch.float32),
            return_dict=False,
        )[0]
        return (v - (noise - given.x_0)).square().mean().item()

    before = loss()
    train.train(pipe, given, rank=4, train_steps=25, batch=8, rate=2e-2, seed=0)
    assert loss() < 0.9 * before


def test_the_table_scores_in_the_words_of_the_style_and_leaves_the_reference_without_psnr():
    prompts = ["a red star on white", "a green heart on black"]
    parsed = [captions.parse(prompt) for prompt in prompts]
    plain = np.stack([render(layout(caption, Random(0))) for caption in parsed])
    styled = np.stack([render(layout(look.negative(caption), Random(0))) for caption in parsed])
    rows = [compare.Row("plain", "100 forwards", plain), compare.Row("styled\n+ x", "8 forwards", styled)]
    lines = compare.table(rows, styled, prompts).splitlines()
    assert re.fullmatch(r"\| plain \| 100 forwards \| 0 % \| \d\.\d dB \|", lines[2])
    assert lines[3] == "| styled + x | 8 forwards | 100 % |  |"


def blocks(language):
    """The page's blocks of code in a language."""
    return [code for found, code in FENCE.findall(PAGE.read_text(encoding="utf-8")) if found == language]


def commands():
    """Every command of the page, in order, without its comment."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.strip()]


def cut(command):
    """The command with its sizes cut, run by this checkout's own code."""
    for start, options in CUT.items():
        command = f"{command} {options}" if command.startswith(start) else command
    return re.sub(r"^glance ", "python -m pipeline.cli ", command)


def test_the_sizes_that_are_cut_stand_on_the_page():
    text = "\n".join(commands())
    assert all(part in text for part in CUT)


def test_the_page_runs_as_it_is_written(project, tmp_path):
    shutil.copytree(project.folder, tmp_path / "clone", symlinks=True)
    own = Project(tmp_path / "clone", tmp_path)
    (changes,) = (YAML(typ="safe", pure=True).load(code) for code in blocks("yaml"))
    said = {}
    for command in commands():
        if command == "dvc repro":  # by now the page has said what params.yaml must hold
            for section, values in changes.items():
                for name, value in values.items():
                    own.change(f"{section}.{name}", SHORT.get(section, {}).get(name, value))
        said[command] = own.succeed(*shlex.split(cut(command)))
    folder = own.folder

    (lora,) = json.loads((folder / "artifacts" / "bundle" / "glance.json").read_text())["loras"]
    digest = artifacts.file_digest(folder / "loras" / "negative.safetensors").removeprefix("sha256:")
    assert lora == {"file": "negative.safetensors", "weight": 1.0, "sha256": digest}
    assert artifacts.folder_digest(folder / "negative-pair") == artifacts.folder_digest(folder / "artifacts" / "bundle")
    assert json.loads((folder / "evaluation-untrained" / "metrics.json").read_text())["arms"]["student"]["psnr"] > 0
    for phase in ("slow", "fast"):
        assert (folder / "negative-fused" / phase / "transformer" / "config.json").is_file()
    assert Image.open(folder / "your_style.png").width > 1000
    table = next(output for command, output in said.items() if "compare" in command)
    assert [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")][2:] == [
        "Teacher", "Styled teacher", "Styled student", "Shipped pair + style LoRA",
    ]  # fmt: skip

    card = (folder / "negative-pair" / "README.md").read_text()
    lines, *_ = (code for language, code in FENCE.findall(card) if language == "python")  # the others: from images
    assert 'pipe.load_lora_weights("loras", weight_name="negative.safetensors")' in lines
    lines = lines.replace('folder = "."', 'folder = "negative-pair"')  # the card's own folder, from the project's
    theirs = own.run(sys.executable, "-c", f"{lines}\nimage.save('theirs.png')\n")
    assert theirs.returncode == 0, theirs.stdout
    own.succeed("python", "-m", "pipeline.cli", "generate", "a red star", "--bundle", "negative-pair", "--out", "o.png")
    first, second = (np.asarray(Image.open(folder / name)).astype(int) for name in ("theirs.png", "o.png"))
    assert first.std() > 1 and np.abs(first - second).max() <= 1
