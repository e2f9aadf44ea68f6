"""Reading a bundle: what is missing or does not fit is refused by its name."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.bundle.manifest import Bundle
from tests.published import write_bundle


@pytest.fixture
def folder(tmp_path):
    """A bundle to break."""
    return write_bundle(tmp_path / "bundle", path="consistent")


def change(folder, **values):
    path = folder / "glance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_bundle_has_its_phases_in_order(folder):
    bundle = Bundle.load(folder)
    assert list(bundle.phases) == list(bundle.files) == list(bundle.states()) == ["slow", "fast"]
    assert bundle.files["fast"] == folder / "fast.safetensors"


@pytest.mark.parametrize(
    "file", ["slow.safetensors", "fast.safetensors", "glance.json", "adapter_config.json", "README.md"]
)
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    with pytest.raises(ValueError, match=f"is no bundle: {file} is missing"):
        Bundle.load(folder)


def test_another_format_is_refused(folder):
    change(folder, format=2)
    with pytest.raises(ValueError, match="format must be 1, got 2"):
        Bundle.load(folder)


@pytest.mark.parametrize("phases", [{"slow": {}}, {"slow": {"steps": [0]}}, []])
def test_an_incomplete_manifest_is_refused(folder, phases):
    change(folder, phases=phases)
    with pytest.raises(ValueError, match="is not a complete manifest"):
        Bundle.load(folder)


def test_an_older_manifest_without_a_path_is_consistent(folder, tmp_path):
    older = shutil.copytree(folder, tmp_path / "older")
    content = json.loads((older / "glance.json").read_text())
    del content["path"]
    (older / "glance.json").write_text(json.dumps(content))
    assert Bundle.load(older) == replace(Bundle.load(folder), folder=older)


@pytest.mark.parametrize("value", ["best", None])
def test_an_unknown_path_is_refused(folder, value):
    change(folder, path=value)
    with pytest.raises(ValueError, match=rf"glance.json: path must be one of consistent, official, got {value!r}"):
        Bundle.load(folder)


def test_phases_that_do_not_join_are_refused(folder):
    phases = json.loads((folder / "glance.json").read_text())["phases"]
    phases["fast"]["sigmas"][0] += 0.01
    change(folder, phases=phases)
    with pytest.raises(ValueError, match="slow must end where fast starts, and sigma go down to 0"):
        Bundle.load(folder)


def test_another_rank_than_stated_is_refused(folder):
    change(folder, rank=8)
    with pytest.raises(ValueError, match=r"slow.safetensors must have rank 8, as glance.json says, got \[2\]"):
        Bundle.load(folder)


def test_a_file_that_is_no_safetensors_is_refused(folder):
    (folder / "fast.safetensors").write_bytes(b"not at all")
    with pytest.raises(ValueError, match="fast.safetensors is no safetensors file"):
        Bundle.load(folder)


def test_a_foreign_tensor_is_refused(folder):
    tensors = load_file(folder / "slow.safetensors")
    save_file(tensors | {"text_encoder.x": torch.zeros(1)}, folder / "slow.safetensors")
    with pytest.raises(ValueError, match="must hold transformer.<module>.lora_A/B.weight only, got 'text_encoder.x'"):
        Bundle.load(folder)
