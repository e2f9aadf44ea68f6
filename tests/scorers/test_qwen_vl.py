"""The adapter of Qwen2.5-VL: a tiny model of the real classes, saved to a folder and loaded from it."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.benchmarking.scorers import qwen_vl, table
from pipeline.evaluation.benchmarks.official import Item
from tests.scorers import tiny_models

CPU = torch.device("cpu")
QUESTIONS = ["What is it?", "Is it a cat?", "What is it?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.make_qwen_vl(tmp_path_factory.mktemp("weights") / "qwen")


@pytest.fixture(scope="module")
def model(folder):
    return qwen_vl.load(folder, CPU)


@pytest.fixture
def copy(folder, tmp_path):
    """The folder of the model, which a test may change."""
    return shutil.copytree(folder, tmp_path / "qwen")


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    sizes = ((64, 64), (90, 60), (64, 64))
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


class Fixed(nn.Module):
    """A head that says the same of every token."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, hidden):
        return self.logits.expand(*hidden.shape[:2], -1)


@pytest.fixture
def said(model):
    """A function that gives the model a head with these logits, and -100 for other tokens."""

    def say(**logits):
        values = torch.full((len(model.processor.tokenizer),), -100.0)
        for piece, value in logits.items():
            values[model.processor.tokenizer.convert_tokens_to_ids(piece)] = value
        model.model.lm_head = Fixed(values)

    own = model.model.lm_head
    yield say
    model.model.lm_head = own


def by_hand(model, image, question, limit):
    """Tokens by argmax with the repetition penalty of 1.05, and the distribution of the first: one forward a token."""
    text = f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
    factor = 28
    size = [round(side / factor) * factor for side in image.size]
    inputs = model.processor(text=[text], images=[image.resize(size)], return_tensors="pt")
    tokens, kinds, first = inputs["input_ids"], inputs["mm_token_type_ids"], None
    ends = [model.processor.tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|endoftext|>")]
    written = []
    while len(written) < limit:
        fields = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "mm_token_type_ids": kinds}
        pictures = {key: inputs[key] for key in ("pixel_values", "image_grid_thw")}
        logits = model.model(**fields, **pictures, use_cache=False).logits[0, -1].float()
        seen = tokens[0].unique()
        logits[seen] = torch.where(logits[seen] < 0, logits[seen] * 1.05, logits[seen] / 1.05)
        first = logits.softmax(-1) if first is None else first
        token = logits.argmax()
        if token.item() in ends:
            break
        written.append(token.item())
        tokens = torch.cat([tokens, token.view(1, 1)], dim=1)
        kinds = torch.cat([kinds, torch.zeros_like(kinds[:, :1])], dim=1)
    return model.processor.tokenizer.decode(written, skip_special_tokens=True), first


@torch.no_grad()
@pytest.mark.parametrize("number", range(3))
def test_answers_are_the_likeliest_tokens(model, images, number):
    text, distribution = by_hand(model, images[number], QUESTIONS[number], limit=8)
    assert text and model.answers(images, QUESTIONS, 8)[number] == text
    yes = model.processor.tokenizer.convert_tokens_to_ids("Yes")
    probability = model.probabilities(images, QUESTIONS, "Yes")[number]
    assert probability == pytest.approx(distribution[yes].item(), rel=1e-4) and 0 < probability < 1


def test_a_batch_gives_what_each_image_gives_alone(model, images):
    alone = [model.answers([image], [text], 8)[0] for image, text in zip(images, QUESTIONS, strict=True)]
    assert model.answers(images, QUESTIONS, 8) == alone and len(set(alone)) == 3
    same = ["What is it?"] * 3
    together = model.probabilities(images, same, "Yes")
    assert together == pytest.approx([model.probabilities([image], same[:1], "Yes")[0] for image in images], rel=1e-4)


def test_rows_of_one_length_share_a_call_and_no_more_than_fit(model, images, monkeypatch):
    monkeypatch.setattr(qwen_vl, "ROWS", 2)
    calls = [rows for rows, _ in model._calls([images[0]] * 3 + images[:2], ["What?"] * 3 + ["Which?", "What?"])]
    assert calls == [[0, 1], [2], [3], [4]]
    for _, inputs in model._calls(images, QUESTIONS):
        assert inputs["attention_mask"].all()


def test_the_probability_is_the_softmax_of_the_logits(model, images, said):
    said(Yes=1.0, No=2.0)
    assert model.probabilities(images[:1], ["ok?"], "Yes")[0] == pytest.approx(1 / (1 + np.e))
    assert model.probabilities(images[:1], ["Yes?"], "Yes")[0] == pytest.approx(1 / (1 + np.e ** (2 - 1 / 1.05)))


def test_the_penalty_of_the_folder_holds_and_the_answer_ends(model, images, said):
    said(A=1.0, B=0.98)
    assert model.answers(images[:1], ["?"], 4) == ["ABAA"]  # 1 < 0.98 * 1.05, and then both are penalised
    said(**{"Yes": 1.0, "<|im_end|>": 0.99})
    assert model.answers(images[:1], ["?"], 4) == ["YesYesYesYes"]  # the end of the question is penalised, too
    said(**{"<|endoftext|>": 0.99, "Yes": 1.0})
    assert model.answers(images[:2], ["?", "?"], 4) == ["Yes", "Yes"]


def test_the_model_is_loaded_once_for_all_scorers(folder, model, images):
    places = {"qwen2.5-vl-7b": folder}
    users = ("vqascore_qwen2.5-vl-7b", "longtext_ocr", "oneig_alignment", "oneig_text")
    scorers = [table.find(name).load(places, CPU) for name in users]
    assert all(scorer.model is scorers[0].model for scorer in scorers)
    items = [Item(id="a", prompt="What is it?")] * 3
    asked = ['Does this figure show "What is it?"? Please answer Yes or No.'] * 3
    expected = [{"vqascore": score} for score in model.probabilities(images, asked, "Yes")]
    assert scorers[0].fields(images, items) == expected
    item = Item(id="a", prompt="", extra={"language": "en", "text": ["a b"]})
    assert scorers[1].fields(images[:1], [item])[0].keys() == {"matched", "words", "text"}


def test_an_answer_of_several_tokens_is_refused(tmp_path, images):
    other = qwen_vl.load(tiny_models.make_qwen_vl(tmp_path / "qwen", merges=()), CPU)
    with pytest.raises(ValueError, match="qwen2.5-vl-7b must have one token for 'Yes', got 3"):
        other.probabilities(images, QUESTIONS, "Yes")


def without_folder(folder):
    shutil.rmtree(folder)


def without_generation(folder):
    (folder / "generation_config.json").unlink()


def of_another_type(folder):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "qwen2_vl"}))


def without_weights(folder):
    (folder / "model.safetensors").unlink()


def with_half_the_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def without_a_tensor(folder):
    state = load_file(folder / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def with_a_tensor_of_another_shape(folder):
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"] = state["lm_head.weight"][:, :8].contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def without_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


def without_processor(folder):
    (folder / "processor_config.json").unlink()


def without_template(folder):
    (folder / "chat_template.jinja").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_folder, "must be a folder, got"),
        (without_generation, "must hold generation_config.json, got .* with chat_template.jinja, config.json"),
        (of_another_type, "must be a model of type qwen2_5_vl, got qwen2_vl"),
        (without_weights, "must be a whole folder, got"),
        (with_half_the_weights, "must be a whole folder, got"),
        (
            without_a_tensor,
            "must have all tensors .*, got .* with 1 missing or of another shape, such as lm_head.weight",
        ),
        (with_a_tensor_of_another_shape, "must have all tensors .* of another shape, such as lm_head.weight"),
        (without_processor, "must be a whole folder, got .*image processor"),
        (without_tokenizer, r"must have a tokenizer whose <\|image_pad\|> is token 265, got \d+ in "),
        (without_template, "must have a chat template, got .* without"),
    ],
)
def test_wrong_folders_are_refused(copy, spoil, message):
    spoil(copy)
    with pytest.raises(ValueError, match=f"the weight qwen2.5-vl-7b {message}") as refusal:
        qwen_vl.load(copy, CPU)
    assert "\n" not in str(refusal.value)
