"""The section `rivals` of params.yaml: what an entry may hold, and what is refused."""

from dataclasses import asdict
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline import params, rival_params
from pipeline.faults import Faults
from tests.test_params import SHIPPED

LIGHTNING = {
    "weights": "owner/name@main/four.safetensors",
    "scale": 1.0,
    "steps": 4,
    "shift": 3,
    "terminal": None,
    "sampler": "euler",
    "true_cfg_scale": 1.0,
    "guidance_scale": None,
    "license": "Apache-2.0",
}
EXPERTS = [
    {"weights": "slow.safetensors", "steps": [1, 0]},
    {"weights": "fast.safetensors", "steps": [2, 3]},
]
GIVEN = {key: value for key, value in LIGHTNING.items() if key not in ("shift", "terminal")}


def load(rivals):
    content = YAML(typ="safe", pure=True).load(SHIPPED.read_text())
    return params.from_dict(content | {"rivals": rivals})


def faults(rivals):
    with pytest.raises(Faults) as refusal:
        load(rivals)
    return list(refusal.value.sentences)


def test_the_shipped_parameters_have_no_rival():
    assert params.load(SHIPPED).rivals == {} and params.load(SHIPPED).published == {}


def test_an_entry_becomes_a_dataclass_and_the_parameters_keep_its_words():
    loaded = load({"four": LIGHTNING})
    rival = loaded.published["four"]
    assert (rival.steps, rival.shift, rival.terminal, rival.sigmas) == (4, 3.0, None, None)
    assert rival.active == (0, 0, 0, 0) and isinstance(rival.shift, float)
    assert [file.path for file in rival.files] == [Path("rivals/owner/name@main/four.safetensors")]
    assert asdict(loaded)["rivals"] == {"four": LIGHTNING}, "grids and MLflow read the parameters back"


def test_an_absent_terminal_is_the_teachers_and_null_is_none():
    absent = {key: value for key, value in LIGHTNING.items() if key != "terminal"}
    found = load({"a": absent, "b": LIGHTNING, "c": LIGHTNING | {"terminal": 0.02}, "d": GIVEN | {"shift": None}})
    assert {name: rival.terminal for name, rival in found.published.items()} == {
        "a": "teacher",
        "b": None,
        "c": 0.02,
        "d": "teacher",
    }


def test_given_levels_need_no_shift():
    assert load({"two": GIVEN | {"steps": 2, "sigmas": [1, 0.5]}}).published["two"].sigmas == (1.0, 0.5)


def test_experts_share_the_steps():
    rival = load({"pair": LIGHTNING | {"weights": EXPERTS}}).published["pair"]
    assert rival.active == (0, 0, 1, 1)
    assert [file.file for file in rival.files] == ["slow.safetensors", "fast.safetensors"]


@pytest.mark.parametrize(
    ("base", "hub", "fits"),
    [
        (None, "Qwen/Qwen-Image@75e", True),
        ("Qwen/Qwen-Image", "Qwen/Qwen-Image@75e", True),
        ("Qwen/Qwen-Image-2512", "Qwen/Qwen-Image@75e", False),
        ("Qwen/Qwen-Image", None, True),
    ],
)
def test_an_entry_for_another_base_is_left_out(base, hub, fits):
    entries = load({"four": LIGHTNING | {"base": base}}).rivals
    assert ("four" in rival_params.published(entries, hub)) == fits


def test_a_folder_of_images_needs_no_more():
    loaded = load({"pi_flow": {"images": "made/elsewhere"}, "four": LIGHTNING})
    assert rival_params.images(loaded.rivals) == {"pi_flow": Path("made/elsewhere")}
    assert loaded.published.keys() == {"four"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weights": "../x.safetensors"}, "rivals.four: weights must be FILE.safetensors under rivals/, or the hub's"),
        ({"weights": "x.ckpt"}, "rivals.four: weights must be FILE.safetensors under rivals/, or the hub's owner/name"),
        ({"weights": []}, "rivals.four.weights must be a path or a list of {weights, steps}, got []"),
        (
            {"weights": [{"weights": "x.safetensors"}]},
            "rivals.four.weights must be a path or a list of {weights, steps",
        ),
        ({"weights": [{"weights": 3, "steps": [0]}]}, "rivals.four.weights must hold a path in each weights, got 3"),
        (
            {"weights": [{"weights": "x.safetensors", "steps": [True]}]},
            "rivals.four.weights must hold a list of steps from 0 for x.safetensors, got [True]",
        ),
        ({"weights": EXPERTS[:1]}, "rivals.four.weights must name each of the steps 0 to 3 once, got [0, 1]"),
        (
            {"weights": [*EXPERTS, EXPERTS[0]]},
            "rivals.four.weights must name each of the steps 0 to 3 once, got [0, 0, 1, 1, 2, 3]",
        ),
        ({"steps": 5, "weights": EXPERTS}, "rivals.four.weights must name each of the steps 0 to 4 once, got [0, 1, 2"),
        ({"scale": 0}, "rivals.four.scale must be above 0, got 0"),
        ({"steps": 0}, "rivals.four.steps must be at least 1, got 0"),
        ({"shift": 0}, "rivals.four.shift must be at least 0.01, got 0"),
        ({"shift": "three"}, "rivals.four.shift must be a number or null, got 'three'"),
        (
            {"terminal": 1},
            "rivals.four.terminal must be null, or above 0 and below 1, or absent for the teacher's, got",
        ),
        ({"terminal": 0.02, "steps": 1}, "rivals.four.terminal must be null for a single step, got 0.02"),
        ({"sampler": "heun"}, "rivals.four.sampler must be euler or renoise, got 'heun'"),
        ({"true_cfg_scale": 0.5}, "rivals.four.true_cfg_scale must be at least 1, got 0.5"),
        ({"guidance_scale": -1}, "rivals.four.guidance_scale must be at least 0, got -1"),
        ({"license": " "}, "rivals.four.license must name the licence of the weights, got ' '"),
        ({"base": "Qwen-Image"}, "rivals.four.base must be the hub's owner/name or null, got 'Qwen-Image'"),
        ({"sigmas": [1, 0.5]}, "rivals.four.sigmas are the final levels: leave shift and terminal out"),
        ({"step": 4}, "rivals.four.step is not a parameter; rivals.four has weights, scale, steps, shift, sigmas"),
    ],
)
def test_a_wrong_entry_is_one_sentence(change, sentence):
    found = faults({"four": LIGHTNING | change})
    assert len(found) == 1 and found[0].startswith(sentence), found


@pytest.mark.parametrize(
    ("sigmas", "sentence"),
    [
        ([1, 0.5, 0.2], "rivals.two.sigmas must hold a level for each of the 2 steps, got 3"),
        ([0.5, 1], "rivals.two.sigmas must decrease within (0, 1], without the final 0, got [0.5, 1]"),
        ([1, 0], "rivals.two.sigmas must decrease within (0, 1], without the final 0, got [1, 0]"),
        ("1, 0.5", "rivals.two.sigmas must be a list of numbers or null, got '1, 0.5'"),
    ],
)
def test_wrong_levels_are_one_sentence(sigmas, sentence):
    assert faults({"two": GIVEN | {"steps": 2, "sigmas": sigmas}}) == [sentence]


@pytest.mark.parametrize(
    ("rivals", "sentence"),
    [
        ([], "rivals must map names to entries, {} for none, got []"),
        ({4: LIGHTNING}, "rivals must have names of letters, digits, dots and dashes, got 4"),
        ({"a/b": LIGHTNING}, "rivals must have names of letters, digits, dots and dashes, got 'a/b'"),
        ({"four": 3}, "rivals.four must hold the keys weights, scale, steps, shift, sigmas, terminal, sampler"),
        ({"x": {"images": ""}}, "rivals.x must hold images: FOLDER and no other key, got {'images': ''}"),
        ({"x": {"images": "a", "steps": 4}}, "rivals.x must hold images: FOLDER and no other key, got {'images': 'a'"),
        ({"four": GIVEN}, "rivals.four.shift is missing from params.yaml"),
    ],
)
def test_a_wrong_section_is_one_sentence(rivals, sentence):
    found = faults(rivals)
    assert len(found) == 1 and found[0].startswith(sentence), found


def test_every_fault_of_every_entry_is_reported():
    found = faults({"a": LIGHTNING | {"steps": 0, "scale": 0}, "b": LIGHTNING | {"license": ""}})
    assert [sentence.split()[0] for sentence in found] == ["rivals.a.scale", "rivals.a.steps", "rivals.b.license"]
