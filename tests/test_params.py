"""params.yaml is checked once, and every refusal names the key, the rule and the value."""

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline import params

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
        ("trajectories.stride", 3, "trajectories.stride must divide teacher.steps = 50, got 3"),
        ("trajectories.precision", "fp16", "trajectories.precision must be bf16 or fp32, got 'fp16'"),
        ("runtime.device", "tpu", "runtime.device must be auto, cpu or cuda, got 'tpu'"),
        ("register.name", "a/b", "register.name must be a name without / and :, got 'a/b'"),
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


def test_an_unknown_section_is_refused(content):
    with pytest.raises(ValueError, match="^trainings is not a parameter; params.yaml has teacher, trajectories"):
        params.from_dict(content | {"trainings": {}})


def test_a_missing_key_is_refused(content):
    del content["training"]["rank"]
    with pytest.raises(ValueError, match="training.rank is missing from params.yaml"):
        params.from_dict(content)


def test_a_section_that_is_no_mapping_is_refused(content):
    with pytest.raises(ValueError, match="student must hold the keys true_cfg_scale, got 3"):
        params.from_dict(content | {"student": 3})


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="params.yaml is missing: run this in the root of the project"):
        params.load(tmp_path / "params.yaml")


def test_a_broken_file_is_refused(tmp_path):
    (tmp_path / "params.yaml").write_text("teacher: [")
    with pytest.raises(ValueError, match="params.yaml is not valid YAML"):
        params.load(tmp_path / "params.yaml")
