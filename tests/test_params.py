"""params.yaml is checked once, and every refusal names the key, the rule and the value."""

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline import params
from pipeline.faults import Faults, WrongValue

SHIPPED = Path(__file__).parent.parent / "params.yaml"


@pytest.fixture
def content():
    return YAML(typ="safe", pure=True).load(SHIPPED.read_text())


def change(content, key, value):
    section, name = key.split(".")
    content[section][name] = value
    return content


def test_the_shipped_file_is_valid_and_keeps_every_number(content):
    loaded = params.load(SHIPPED)
    assert loaded.partition == params.PartitionParams(**content["partition"])
    assert loaded.train_controls.arms == tuple(content["train_controls"]["arms"])
    assert loaded == params.from_dict(content)


@pytest.mark.parametrize("loras", [[], ["own.safetensors", "a/b@main/c.safetensors:-0.25", "tiny.safetensors:1e-05"]])
def test_written_as_in_the_file_they_are_read_back(content, loras):
    content = change(content, "teacher.loras", loras)
    written = params.to_dict(params.from_dict(content))
    assert written == content and params.from_dict(written) == params.from_dict(content)


def test_values_cannot_be_changed_after_loading():
    with pytest.raises(AttributeError):
        params.load(SHIPPED).teacher.steps = 3


def test_a_whole_number_is_a_number_and_stays_equal_to_it(content):
    loaded = params.from_dict(change(content, "training.alpha", 32))
    assert isinstance(loaded.training.alpha, float) and loaded.training.alpha == 32


def test_exponents_without_a_dot_are_numbers_as_in_dvc(tmp_path):
    text = re.sub(r"learning_rate: \S+", "learning_rate: 1e-3", SHIPPED.read_text())
    (tmp_path / "params.yaml").write_text(text)
    assert params.load(tmp_path / "params.yaml").train_slow.learning_rate == 0.001


def test_the_encoding_is_utf_8_with_or_without_a_byte_order_mark(tmp_path):
    text = SHIPPED.read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8-sig")
    assert params.load(tmp_path / "params.yaml") == params.load(SHIPPED)
    (tmp_path / "params.yaml").write_text(text, encoding="utf-16")
    with pytest.raises(ValueError, match="params.yaml must be UTF-8 text, and line 1 is not: save it as UTF-8"):
        params.load(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("partition.slow_steps", 0, "partition.slow_steps must be at least 1, got 0"),
        ("partition.slow_steps", 2.5, "partition.slow_steps must be an integer, got 2.5"),
        ("partition.slow_steps", True, "partition.slow_steps must be an integer, got True"),
        ("partition.threshold_u", 0, "partition.threshold_u must be above 0, got 0"),
        ("partition.threshold_u", 1.5, "partition.threshold_u must be at most 1, got 1.5"),
        ("partition.threshold_u", "half", "partition.threshold_u must be a number, got 'half'"),
        ("train_fast.learning_rate", float("nan"), "train_fast.learning_rate must be a number, got nan"),
        ("train_fast.learning_rate", -1e-3, "train_fast.learning_rate must be above 0, got -0.001"),
        ("teacher.path", "", "teacher.path must name a folder, got ''"),
        ("teacher.negative_prompt", None, "teacher.negative_prompt must be a text, got None"),
        ("trajectories.prompts_file", 3, "trajectories.prompts_file must be a text or null, got 3"),
        ("training.precision", "fp8", "training.precision must be bf16 or fp32, got 'fp8'"),
        ("official.samples", 0, "official.samples must be at least 1, got 0"),
        ("official.objective", "", "official.objective must name an objective, got ''"),
        ("runtime.checkpoint_every", 0, "runtime.checkpoint_every must be at least 1, got 0"),
        ("train_controls.arms", "single", "train_controls.arms must be a list of texts, got 'single'"),
        ("trajectories.steps", 3, "trajectories.steps must divide teacher.steps = 50, got 3"),
        ("trajectories.steps", 100, "trajectories.steps must divide teacher.steps = 50, got 100"),
        ("trajectories.precision", "fp16", "trajectories.precision must be bf16 or fp32, got 'fp16'"),
        ("runtime.device", "tpu", "runtime.device must be auto, cpu or cuda, got 'tpu'"),
        ("runtime.offload", "yes", "runtime.offload must be true or false, got 'yes'"),
        ("runtime.offload", "on", "runtime.offload must be true or false, got 'on'"),
        ("training.rank", "8", "training.rank must be an integer, got '8'"),
        ("training.rank", [8], "training.rank must be an integer, got [8]"),
        ("training.rank", None, "training.rank must be an integer, got None"),
        ("teacher.dtype", ["fp32"], "teacher.dtype must be a text, got ['fp32']"),
        ("training.rank", 10**30, "training.rank must be at most 100000000000000, got an integer of 100 bits"),
        ("training.alpha", 10**400, "training.alpha must be a number, got an integer of 1329 bits"),
        ("training.alpha", float("inf"), "training.alpha must be a number, got inf"),
        ("evaluation.seed", float("inf"), "evaluation.seed must be an integer, got inf"),
        ("teacher.guidance_scale", -0.0, "teacher.guidance_scale must be at least 0, got -0.0"),
        ("train_controls.arms", None, "train_controls.arms must be a list of texts, got None"),
        ("train_controls.arms", [1], "train_controls.arms must be a list of texts, got [1]"),
        ("partition.fast_steps", 48, "partition.slow_steps + fast_steps must be at most the 25 recorded steps, got 51"),
    ],
)
def test_a_wrong_value_is_refused_by_name(content, key, value, message):
    with pytest.raises(ValueError) as refusal:
        params.from_dict(change(content, key, value))
    assert message in str(refusal.value)


def test_an_unknown_key_is_refused(content):
    with pytest.raises(ValueError, match="training.learning_rat is not a parameter; training has objective, rank"):
        params.from_dict(change(content, "training.learning_rat", 1))


@pytest.mark.parametrize("name", ["", "  ", "a/b", "a:b", "..", 251 * "n"])
def test_a_name_that_mlflow_would_refuse_at_the_end_is_refused(content, name):
    assert params.from_dict(change(content, "register.name", 250 * "n")).register.name == 250 * "n"
    with pytest.raises(ValueError, match="^register.name must be at most 250 letters without / and :, the first no "):
        params.from_dict(change(content, "register.name", name))


def test_an_integer_that_python_does_not_write_out_is_refused(content):
    with pytest.raises(ValueError, match="^trajectories.seed must be at most 100000000000000, got an integer of 16610"):
        params.from_dict(change(content, "trajectories.seed", 10**5000))


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("rnak", "training.rnak is not a parameter; training has .*; did you mean rank"),
        ("rank ", "training.'rank ' is not a parameter; training has .*; did you mean rank"),
        (3, "training.3 is not a parameter; training has .*, targets, batch, anchor_batch, .*"),
    ],
)
def test_a_misspelt_key_is_one_fault(content, key, sentence):
    content["training"][key] = content["training"].pop("rank")
    _, found = params.sift(content)
    assert re.match(sentence, found[0])
    assert found[1:] == ([] if isinstance(key, str) else ["training.rank is missing from params.yaml"])


def test_everything_that_is_wrong_is_said_and_the_rest_is_kept(content):
    content["partition"] |= {"slow_steps": "3", "rule": "snrr"}
    content["teacher"] |= {"loras": ["a.safetensors", "b.bin", "c.safetensors:x"], "height": -1}
    content["student"] = 3
    right, found = params.sift(content)
    assert [sentence.split(" must ")[0] for sentence in found] == [
        "teacher.loras", "teacher.loras", "teacher.height", "partition.slow_steps", "student",
    ]  # fmt: skip
    assert right.partition.rule == "snrr" and right.training.rank == 64
    with pytest.raises(WrongValue):
        _ = right.partition.slow_steps
    with pytest.raises(Faults) as refusal:
        params.from_dict(content)
    assert refusal.value.sentences == tuple(found)
    assert str(refusal.value) == f"{found[0]} (and 4 more)"


def test_no_arms_are_a_choice(content):
    assert params.from_dict(change(content, "train_controls.arms", [])).train_controls.arms == ()


def test_an_unknown_section_is_refused(content):
    with pytest.raises(ValueError, match="^trainings is not a parameter; params.yaml has teacher, trajectories"):
        params.from_dict(content | {"trainings": {}})


def test_a_missing_key_is_refused(content):
    del content["training"]["rank"]
    with pytest.raises(ValueError, match="training.rank is missing from params.yaml"):
        params.from_dict(content)


def test_a_section_that_is_no_mapping_is_refused(content):
    with pytest.raises(ValueError, match="student must hold the keys true_cfg_scale, solver, got 3"):
        params.from_dict(content | {"student": 3})


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="params.yaml is missing: run this in the root of the project"):
        params.load(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"teacher: [", "params.yaml is not valid YAML: .* but found '<stream end>', in line 1"),
        (b"teacher:\n\tpath: x\n", r"is not valid YAML: found character '\\t' that cannot start any token, in line 2"),
        (b"a:\n  b: 1\n  b: 2\n", r'is not valid YAML: found duplicate key "b" with value "2" .*, in line 3'),
        (b"a: " + b"9" * 5000, "params.yaml is not valid YAML: Exceeds the limit"),
        (b"a: \x01", "params.yaml is not valid YAML: unacceptable character"),
        (b"a: \xff", "params.yaml must be UTF-8 text, and line 1 is not: save it as UTF-8"),
        (b"", "params.yaml must hold the keys teacher, trajectories, .*, got None"),
    ],
)
def test_a_broken_file_is_refused(tmp_path, text, sentence):
    (tmp_path / "params.yaml").write_bytes(text)
    with pytest.raises(ValueError, match=sentence) as refusal:
        params.load(tmp_path / "params.yaml")
    assert "\n" not in str(refusal.value)
