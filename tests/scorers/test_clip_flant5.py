"""VQAScore by CLIP-FlanT5: a tiny network of the real classes, loaded from files that are named as the hub's."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, T5Config, T5ForConditionalGeneration

from pipeline.benchmarking.scorers import clip_flant5, table
from pipeline.evaluation.benchmarks.official import Item
from tests.scorers import tiny_models

CPU = torch.device("cpu")
ENTRY = table.find("vqascore_clip-flant5-xxl")
NETWORK, CLIP, TOKENIZER = (weight.name for weight in ENTRY.weights)
PROMPTS = ["a cat", 'two {dogs} "here" <image>']


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return tiny_models.make_clip_flant5(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def copies(places, tmp_path):
    """The weights in folders that a test may change."""
    return {name: shutil.copytree(place, tmp_path / name) for name, place in places.items()}


@pytest.fixture(scope="module")
def model(places):
    return clip_flant5.load(places, CPU)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((28, 28), (40, 64))]


def state_of(folder):
    return {key: tensor for file in folder.glob("*.safetensors") for key, tensor in load_file(file).items()}


def by_hand(places, image, prompt):
    """The score from the files alone, without the code under test: a T5 whose head is a matrix of its own."""
    state = state_of(places[NETWORK])
    config = json.loads((places[NETWORK] / "config.json").read_text())
    t5 = T5ForConditionalGeneration(
        T5Config(**{k: v for k, v in config.items() if k in T5Config().to_dict() and k != "model_type"})
    ).eval()
    own = {key: value for key, value in state.items() if key in t5.state_dict() and key != "lm_head.weight"}
    assert t5.load_state_dict(own, strict=False).unexpected_keys == []
    vision = json.loads((places[CLIP] / "config.json").read_text())["vision_config"]
    clip = CLIPVisionModel(CLIPVisionConfig(**vision)).eval()
    prefix = "vision_tower.vision_tower.vision_model."
    clip.load_state_dict({key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)})

    size = vision["image_size"]
    assert image.size == (size, size)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    hidden = clip.pre_layrnorm(clip.embeddings((pixels - mean) / std))
    for layer in clip.encoder.layers[:-1]:
        hidden = layer(hidden, attention_mask=None)
    first = hidden[0, 1:] @ state["mm_projector.0.weight"].T + state["mm_projector.0.bias"]
    patches = nn.functional.gelu(first) @ state["mm_projector.2.weight"].T + state["mm_projector.2.bias"]

    tokenizer = tiny_models.make_t5_tokenizer()
    before = tokenizer.encode(
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful,"
        " detailed, and polite answers to the user's questions. USER: "
    ).ids
    after = tokenizer.encode(f'\nDoes this figure show "{prompt}"? Please answer yes or no. ASSISTANT: ').ids
    yes, end = tokenizer.encode("Yes").ids
    assert before[-1] == after[-1] == end == 1
    embed = state["shared.weight"]
    inputs = torch.cat([embed[before], patches, embed[after]])[None]
    encoded = t5.encoder(inputs_embeds=inputs).last_hidden_state
    start = torch.tensor([[0, yes]])
    decoded = t5.decoder(input_ids=start, encoder_hidden_states=encoded).last_hidden_state[0]
    logs = torch.log_softmax(decoded @ state["lm_head.weight"].T, dim=-1)
    return math.exp((logs[0, yes] + logs[1, end]).item() / 2)


@torch.no_grad()
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_score_is_that_of_the_files_by_hand(places, model, images, prompt):
    assert model.scores(images[:1], [prompt])[0] == pytest.approx(by_hand(places, images[0], prompt), rel=1e-5)


def test_the_network_sees_image_and_prompt(model, images):
    black = Image.new("RGB", (28, 28))
    scores = [*model.scores([images[0], black], ["a cat"] * 2), *model.scores(images[:1], ["a dog"])]
    assert len({round(score, 8) for score in scores}) == 3 and all(0 < score < 1 for score in scores)


def test_a_batch_gives_what_each_image_gives_alone(model, images):
    together = model.scores(images, PROMPTS)
    alone = [model.scores([image], [prompt])[0] for image, prompt in zip(images, PROMPTS, strict=True)]
    assert together == pytest.approx(alone, rel=1e-5)
    assert model.scores(images, PROMPTS) == together


@torch.no_grad()
def test_the_image_stands_between_the_two_texts(model):
    network, before, after = model.network, [5, 6, 1], [[7, 1], [8, 9, 10, 1]]
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    embeddings, mask = network.embedded(pixels, before, after)
    words = network.t5.shared.weight
    patches = network.mm_projector(network.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:])
    assert patches.shape[1] == 4 and embeddings.shape[:2] == mask.shape == (2, 3 + 4 + 4)
    assert mask.tolist() == [[1] * 9 + [0] * 2, [1] * 11]
    for row in range(2):
        assert torch.equal(embeddings[row, :3], words[before])
        torch.testing.assert_close(embeddings[row, 3:7], patches[row])
        assert torch.equal(embeddings[row, 7 : 7 + len(after[row])], words[after[row]])
    assert not embeddings[0, 9:].any()


def test_the_score_is_the_geometric_mean_of_the_two_probabilities():
    logits = torch.log(torch.tensor([[[0.7, 0.2, 0.1], [0.1, 0.4, 0.5]], [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]]))
    scores = clip_flant5.exp_mean_log(logits + 3, torch.tensor([[0, 1], [1, 1]]))
    assert scores.tolist() == pytest.approx([math.sqrt(0.7 * 0.4), math.sqrt(0.5)])


def test_an_image_is_padded_with_the_mean_colour_to_a_square():
    white = Image.new("RGB", (28, 14), "white")
    pixels = clip_flant5.pixels(white, 28)
    assert not pixels[..., :7, :].any() and not pixels[..., 21:, :].any()
    expected = [(1 - mean) / std for mean, std in zip(clip_flant5.MEAN, clip_flant5.STD, strict=True)]
    assert pixels[0, :, 7:21].mean(dim=(1, 2)).tolist() == pytest.approx(expected)
    odd = clip_flant5.pixels(Image.new("RGB", (14, 17), "white"), 17)
    assert not odd[..., :1].any() and not odd[..., 15:].any() and odd[..., 1:15].all()


def test_a_resized_image_keeps_to_the_range_of_colours():
    board = Image.fromarray(np.kron(np.indices((8, 8)).sum(0) % 2, np.ones((9, 9))).astype(np.uint8) * 255).convert(
        "RGB"
    )
    pixels = clip_flant5.pixels(board, 28)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (clip_flant5.MEAN, clip_flant5.STD))
    colours = pixels[0] * std + mean
    assert pixels.shape == (1, 3, 28, 28) and colours.min() > -1e-6 and colours.max() < 1 + 1e-6


def test_pickled_files_give_the_same_scores(tmp_path, model, images):
    other = clip_flant5.load(tiny_models.make_clip_flant5(tmp_path / "bin", safe=False), CPU)
    assert other.scores(images, PROMPTS) == model.scores(images, PROMPTS)


def test_aliases_and_old_buffers_in_the_files_change_nothing(copies, model, images):
    state = state_of(copies[NETWORK])
    extra = {
        name: state["shared.weight"].clone()
        for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "embed_tokens.weight")
    }
    extra["vision_tower.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    tiny_models.write_shards(copies[NETWORK], state | extra, safe=True)
    assert clip_flant5.load(copies, CPU).scores(images, PROMPTS) == model.scores(images, PROMPTS)


def test_the_entry_loads_a_scorer(places, model, images):
    scorer = ENTRY.load(places, CPU)
    items = [Item(id=str(i), prompt=prompt) for i, prompt in enumerate(PROMPTS)]
    assert scorer.fields(images, items) == [{"vqascore": score} for score in model.scores(images, PROMPTS)]


def without_folder(places):
    shutil.rmtree(places[NETWORK])


def without_configuration(places):
    (places[NETWORK] / "config.json").unlink()


def with_another_projector(places):
    file = places[NETWORK] / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"mm_projector_type": "linear"}))


def with_another_width(places):
    file = places[NETWORK] / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": 50}))


def with_a_list_for_configuration(places):
    (places[CLIP] / "config.json").write_text("[]")


def with_broken_configuration(places):
    (places[CLIP] / "config.json").write_text("{")


def without_tokenizer(places):
    (places[TOKENIZER] / "tokenizer.json").unlink()


def with_broken_tokenizer(places):
    (places[TOKENIZER] / "tokenizer.json").write_text("{}")


def with_another_answer(places):
    tokenizer = json.loads((places[TOKENIZER] / "tokenizer.json").read_text())
    for piece in tokenizer["model"]["vocab"]:
        piece[0] = piece[0].replace("▁Yes", "▁No")
    (places[TOKENIZER] / "tokenizer.json").write_text(json.dumps(tokenizer))


def without_a_tensor(places):
    state = state_of(places[NETWORK])
    del state["mm_projector.2.bias"]
    tiny_models.write_shards(places[NETWORK], state, safe=True)


def without_a_shard(places):
    (places[NETWORK] / "model-00002-of-00002.safetensors").unlink()


def with_half_a_shard(places):
    file = places[NETWORK] / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def with_a_broken_pickle(places):
    for file in places[NETWORK].glob("*.safetensors*"):
        file.unlink()
    (places[NETWORK] / "pytorch_model.bin").write_bytes(b"no pickle")


def without_tensors(places):
    for file in places[NETWORK].glob("*.safetensors*"):
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_folder, "clip-flant5-xxl must be a folder, got .*clip-flant5-xxl"),
        (
            without_configuration,
            "clip-flant5-xxl must hold config.json, got .* with model-00001-of-00002",
        ),
        (with_another_projector, "clip-flant5-xxl must have mm_projector_type mlp2x_gelu, got linear"),
        (
            with_another_width,
            r"must have lm_head.weight of shape \(50, 24\), got \(99, 24\) in model-0000",
        ),
        (with_a_list_for_configuration, "large-patch14-336 must have a JSON object in .*config.json, got list"),
        (with_broken_configuration, "the weight clip-vit-large-patch14-336: .*config.json is not a JSON file"),
        (without_tokenizer, "flan-t5-xxl must be tokenizer.json, got .*flan-t5-xxl"),
        (with_broken_tokenizer, "flan-t5-xxl must be a tokenizer, got .*tokenizer.json"),
        (with_another_answer, r"flan-t5-xxl must make two tokens of 'Yes', the last of which is 1, got \[\d+, \d+, "),
        (
            without_a_tensor,
            r"must have \d+ tensors, got .* without 1 of them, such as mm_projector.2.bias",
        ),
        (without_a_shard, "clip-flant5-xxl must hold model-00002-of-00002.safetensors, got"),
        (with_half_a_shard, "clip-flant5-xxl must hold whole files, got .*model-00002-of-00002.safetensors"),
        (with_a_broken_pickle, "clip-flant5-xxl must hold whole files, got .*pytorch_model.bin"),
        (without_tensors, "clip-flant5-xxl must hold safetensors or bin files, got .* with neither"),
    ],
)
def test_wrong_files_are_refused(copies, spoil, message):
    spoil(copies)
    with pytest.raises(ValueError, match=message) as refusal:
        clip_flant5.load(copies, CPU)
    assert "\n" not in str(refusal.value)
