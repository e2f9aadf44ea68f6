"""`clip` and `hpsv2.1` on open_clip's real classes with tiny random weights."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from open_clip.pretrained import get_pretrained_cfg
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as official

from pipeline import artifacts
from pipeline.benchmarking.scorers import clip_score, cosine, hps, pixels, table
from pipeline.evaluation.benchmarks.official import Item

CPU = torch.device("cpu")
SIZES = [(64, 40), (33, 80), (400, 400), (336, 500)]  # width, height
ITEMS = [Item(id=str(i), prompt=text) for i, text in enumerate(["a red cube", "Two  CATS", "", "word " * 200])]
MODULES = {"clip": clip_score, "hpsv2.1": hps}


def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]


def config(side: int, quick_gelu: bool) -> dict:
    return {
        "embed_dim": 16,
        "quick_gelu": quick_gelu,
        "vision_cfg": {"image_size": side, "layers": 2, "width": 32, "head_width": 16, "patch_size": side // 4},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """For a scorer's name: a model of its class, and the place of that model's weights as `load` takes it."""

    def make(name: str):
        module = MODULES[name]
        own = config(module.SIDE, open_clip.get_model_config(module.ARCHITECTURE).get("quick_gelu", False))
        monkeypatch.setattr(open_clip, "get_model_config", {module.ARCHITECTURE: own}.get)
        torch.manual_seed(0)
        model = open_clip.CLIP(**own).eval()
        state = {key: value.half().contiguous() for key, value in model.state_dict().items()}
        model.load_state_dict(state)
        path = tmp_path / module.WEIGHT.file
        if path.suffix == ".safetensors":
            save_file(state, path)
        else:
            torch.save({"state_dict": state, "epoch": 1}, path)
        digest = artifacts.file_digest(path).removeprefix("sha256:")
        monkeypatch.setattr(module, "WEIGHT", replace(module.WEIGHT, sha256=digest))
        return model, {module.WEIGHT.name: path}

    return make


def as_clip(image: Image.Image) -> torch.Tensor:
    """The steps of pi-Flow: sides are rounded, and half a pixel of the crop is left out at the top left."""
    x = official.to_tensor(image)
    height, width = (round(side * 336 / float(min(x.shape[1:]))) for side in x.shape[1:])
    x = official.resize(x, [height, width], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    return official.crop(x, (height - 336) // 2, (width - 336) // 2, 336, 336)


def as_hps(image: Image.Image) -> torch.Tensor:
    """The steps of HPSv2's ResizeMaxSize."""
    x = official.to_tensor(image)
    height, width = (round(side * 224 / float(max(x.shape[1:]))) for side in x.shape[1:])
    x = official.resize(x, [height, width], InterpolationMode.BICUBIC)
    low, right = 224 - height, 224 - width
    return official.pad(x, [right // 2, low // 2, right - right // 2, low - low // 2], fill=0)


@pytest.mark.parametrize("name, prepared", [("clip", as_clip), ("hpsv2.1", as_hps)])
def test_values_are_those_of_the_official_steps(tiny, name, prepared):
    model, places = tiny(name)
    found = table.find(name).load(places, CPU).fields(pictures(), ITEMS)

    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    images = torch.stack([official.normalize(prepared(image), mean, std) for image in pictures()])
    texts = open_clip.SimpleTokenizer(context_length=77)([item.prompt for item in ITEMS])
    model.output_dict = True
    with torch.no_grad():
        out = model(images, texts)
    expected = 100 * torch.diagonal(out["image_features"] @ out["text_features"].T)
    field = {"clip": "clip", "hpsv2.1": "hps"}[name]
    assert all(row.keys() == {field} for row in found)
    values = torch.tensor([row[field] for row in found])
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-3)
    assert values.std() > 1  # the model tells the pairs apart


def test_values_repeat_and_do_not_depend_on_the_batch(tiny):
    _, places = tiny("hpsv2.1")
    scorer = table.find("hpsv2.1").load(places, CPU)
    together = scorer.fields(pictures(), ITEMS)
    assert together == scorer.fields(pictures(), ITEMS)
    alone = [scorer.fields([image], [item])[0]["hps"] for image, item in zip(pictures(), ITEMS, strict=True)]
    assert alone == pytest.approx([row["hps"] for row in together], abs=1e-4)


def test_a_value_is_100_times_the_cosine():
    """Features at 0, 90 and 180 degrees, and the triangle of 3, 4 and 5."""
    seen, read = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0.6, 0.8]]), torch.tensor([[1.0, 0]] * 4)
    model = SimpleNamespace(encode_image=lambda x, normalize: seen, encode_text=lambda x, normalize: read)
    scorer = cosine.Cosine(
        field="clip", model=model, tokenize=lambda texts: torch.zeros(4), prepare=pixels.read, device=CPU
    )
    rows = scorer.fields([Image.new("RGB", (8, 8))] * 4, ITEMS)
    assert [row["clip"] for row in rows] == pytest.approx([100, 0, -100, 60])
    with pytest.raises(ValueError, match="clip needs one prompt for each image, got 4 for 1"):
        scorer.fields([Image.new("RGB", (8, 8))], ITEMS)


def test_the_architectures_are_the_official_ones():
    clip, preference = (open_clip.get_model_config(module.ARCHITECTURE) for module in (clip_score, hps))
    assert clip["quick_gelu"] and "quick_gelu" not in preference
    assert clip["vision_cfg"]["image_size"] == clip_score.SIDE and preference["vision_cfg"]["image_size"] == hps.SIDE
    assert (pixels.CLIP_MEAN, pixels.CLIP_STD) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    source = get_pretrained_cfg(clip_score.ARCHITECTURE, "openai")["hf_hub"]
    assert clip_score.WEIGHT.hub.startswith(source.rstrip("/") + "@")


@pytest.mark.parametrize("name", MODULES)
def test_the_tokenizer_is_that_of_the_architecture(tiny, name):
    texts = ["A photo of  a cat &amp; a dog", "caf\u00e9 " * 100]
    expected = open_clip.get_tokenizer(MODULES[name].ARCHITECTURE)(texts)
    _, places = tiny(name)
    found = table.find(name).load(places, CPU).tokenize(texts)
    assert found.shape == (2, 77) and torch.equal(found, expected)


@pytest.mark.parametrize("name", MODULES)
def test_weights_of_another_architecture_are_refused(tiny, name, monkeypatch):
    module = MODULES[name]
    _, places = tiny(name)
    deeper = config(module.SIDE, False)
    deeper["vision_cfg"]["layers"] = 3
    monkeypatch.setattr(open_clip, "get_model_config", {module.ARCHITECTURE: deeper}.get)
    with pytest.raises(
        ValueError, match=f"the weights {module.WEIGHT.name} must hold .*visual.transformer.resblocks.2"
    ):
        table.find(name).load(places, CPU)


@pytest.mark.parametrize("name", MODULES)
def test_another_file_is_refused(tmp_path, name):
    weight = MODULES[name].WEIGHT
    path = tmp_path / weight.file
    path.write_bytes(b"other")
    with pytest.raises(ValueError, match=f"the weights {weight.name} must be {weight.file} of .* {weight.sha256}, got"):
        table.find(name).load({weight.name: path}, CPU)
