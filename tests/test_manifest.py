"""Reading a bundle: what is missing or does not fit is refused by its name."""

import json
import re
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
    names = [phase.name for phase in bundle.phases]
    assert names == list(bundle.files) == list(bundle.states()) == ["slow", "fast"]
    assert bundle.files["fast"] == folder / "fast.safetensors"


@pytest.mark.parametrize(
    "file", ["slow.safetensors", "fast.safetensors", "glance.json", "adapter_config.json", "README.md"]
)
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    with pytest.raises(ValueError, match=f"is no bundle: {file} is missing"):
        Bundle.load(folder)


def test_another_format_is_refused(folder):
    change(folder, format=3)
    with pytest.raises(ValueError, match="format must be 1 or 2, got 3"):
        Bundle.load(folder)


OLDER = {  # as versions before the list of phases wrote it
    "format": 1,
    "phases": {
        "slow": {"steps": [0], "u": [1.0], "sigmas": [1.0, 0.6]},
        "fast": {"steps": [2], "u": [0.5], "sigmas": [0.6, 0.0]},
    },
    "handoff": {"step": 2, "u": 0.5, "sigma": 0.6},
}


def test_a_bundle_of_format_1_is_read_as_the_same_bundle_of_format_2(folder, tmp_path):
    older = shutil.copytree(folder, tmp_path / "older")
    content = json.loads((older / "glance.json").read_text())
    del content["handoffs"]
    (older / "glance.json").write_text(json.dumps(content | OLDER))
    assert Bundle.load(older) == replace(Bundle.load(folder), folder=older)


@pytest.mark.parametrize(
    "values",
    [
        {"phases": [{"name": "slow"}]},
        {"phases": [{"name": "slow", "file": "slow.safetensors", "steps": [0], "u": 1.0, "sigmas": [1.0, 0.6]}]},
        {"phases": OLDER["phases"]},
        {"format": 1, "phases": {"slow": {}}},
        {"format": 1, "phases": {"slow": {"steps": [0]}}},
        {"format": 1, "phases": []},
    ],
)
def test_an_incomplete_manifest_is_refused(folder, values):
    change(folder, **values)
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


def phases_of(folder):
    return json.loads((folder / "glance.json").read_text())["phases"]


WHOLE = "each phase must end where the next one starts, and sigma go down to 0, got "


def test_phases_that_do_not_join_are_refused(folder):
    phases = phases_of(folder)
    phases[1]["sigmas"][0] += 0.01
    change(folder, phases=phases)
    with pytest.raises(ValueError, match=re.escape(f"{WHOLE}[1.0, 0.6] and [0.61, 0.0] at 2 levels")):
        Bundle.load(folder)


@pytest.mark.parametrize(
    ("phase", "changes"),
    [
        (1, {"sigmas": [0.6, 0.1]}),
        (1, {"sigmas": [0.6, 0.3, 0.0]}),
        (1, {"u": [0.4]}),
        (1, {"steps": []}),
        (0, {"sigmas": [0.5, 0.6]}),
        (0, {"steps": [0, 1]}),
        (0, {"steps": [], "u": [], "sigmas": [0.6]}),
    ],
)
def test_a_path_that_is_not_whole_is_refused(folder, phase, changes):
    phases = phases_of(folder)
    phases[phase] |= changes
    change(folder, phases=phases)
    with pytest.raises(ValueError, match=re.escape(WHOLE)):
        Bundle.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Fast", "file": "Fast.safetensors"}, "the name of a phase must be of a-z, 0-9 and _, got 'Fast'"),
        ({"name": "../x", "file": "../x.safetensors"}, "the name of a phase must be of a-z, 0-9 and _, got '../x'"),
        ({"file": "../fast.safetensors"}, "the file of phase fast must be fast.safetensors, got '../fast.safetensors'"),
        ({"name": "late", "file": "late.safetensors"}, "is no bundle: late.safetensors is missing"),
        ({"name": "slow", "file": "slow.safetensors"}, "entries of different names, got ['slow', 'slow']"),
    ],
)
def test_names_and_files_of_phases_are_checked(folder, changes, message):
    phases = phases_of(folder)
    phases[1] |= changes
    change(folder, phases=phases)
    with pytest.raises(ValueError, match=re.escape(message)):
        Bundle.load(folder)


def test_a_bundle_needs_a_phase(folder):
    change(folder, phases=[])
    with pytest.raises(ValueError, match=r"phases must have one or more entries of different names, got \[\]"):
        Bundle.load(folder)


def test_an_adapter_of_no_phase_is_refused(folder):
    shutil.copy(folder / "fast.safetensors", folder / "late.safetensors")
    with pytest.raises(ValueError, match="must hold the adapters of glance.json alone, got late.safetensors"):
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
