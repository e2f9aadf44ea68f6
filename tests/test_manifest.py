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


@pytest.mark.parametrize("number", [4, 0, "3", True, None])
def test_another_format_is_refused(folder, number):
    change(folder, format=number)
    with pytest.raises(ValueError, match=f"glance.json: format must be 1, 2 or 3, got {number!r}"):
        Bundle.load(folder)


def test_a_manifest_that_is_no_mapping_is_refused(folder):
    (folder / "glance.json").write_text("[]")
    with pytest.raises(ValueError, match="glance.json: format must be 1, 2 or 3, got None"):
        Bundle.load(folder)


PATH = {"u": [1.0, 0.5], "steps": [0, 2]}
GUIDANCE = {"teacher_true_cfg_scale": 3.0, "student_true_cfg_scale": 1.0, "guidance_scale": 3.5}
COMMON = {
    "base_model": "artifacts/teacher",
    "base_digest": "sha256:" + 64 * "0",
    "family": "flux",
    "teacher_steps": 4,
    "height": 64,
    "width": 64,
    "max_sequence_length": 16,
    "dtype": "fp32",
    "base_license": "apache-2.0",
    "rank": 2,
}
OLDER = {
    1: {  # as versions before the list of phases wrote it
        "format": 1,
        **PATH,
        **COMMON,
        "phases": {
            "slow": {"steps": [0], "u": [1.0], "sigmas": [1.0, 0.6]},
            "fast": {"steps": [2], "u": [0.5], "sigmas": [0.6, 0.0]},
        },
        "handoff": {"step": 2, "u": 0.5, "sigma": 0.6},
        "guidance": GUIDANCE,
    },
    2: {  # as versions before the schema wrote it
        "format": 2,
        **PATH,
        **COMMON,
        "loras": [],
        "phases": [
            {"name": "slow", "file": "slow.safetensors", "steps": [0], "u": [1.0], "sigmas": [1.0, 0.6]},
            {"name": "fast", "file": "fast.safetensors", "steps": [2], "u": [0.5], "sigmas": [0.6, 0.0]},
        ],
        "handoffs": [{"step": 2, "u": 0.5, "sigma": 0.6}],
        "guidance": {**GUIDANCE, "negative_prompt": ""},
        "path": "consistent",
        "solver": "euler",
    },
}


def older_folder(folder, tmp_path, number, **values):
    """The bundle with a manifest of an earlier format."""
    older = shutil.copytree(folder, tmp_path / "older")
    (older / "glance.json").write_text(json.dumps(OLDER[number] | values))
    return older


@pytest.mark.parametrize("number", OLDER)
def test_a_bundle_of_an_earlier_format_is_read_as_the_same_bundle_of_today(folder, tmp_path, number):
    older = older_folder(folder, tmp_path, number)
    loaded = Bundle.load(older)
    assert loaded == replace(Bundle.load(folder), folder=older)
    assert loaded.to_json() == json.loads((folder / "glance.json").read_text())


def test_keys_of_no_format_are_left_out_of_an_earlier_one(folder, tmp_path):
    phases = [{**phase, "timesteps": [1000.0]} for phase in OLDER[2]["phases"]]
    older = older_folder(folder, tmp_path, 2, note="x", phases=phases)
    assert Bundle.load(older).to_json() == Bundle.load(folder).to_json()


@pytest.mark.parametrize(
    ("number", "values"),
    [
        (2, {"phases": [{"name": "slow"}]}),
        (2, {"phases": OLDER[1]["phases"]}),
        (2, {"phases": [{**OLDER[2]["phases"][0], "steps": 0, "sigmas": []}, {**OLDER[2]["phases"][1], "u": []}]}),
        (2, {"guidance": 3}),
        (1, {"phases": {"slow": {}}}),
        (1, {"phases": {"slow": {"steps": [0]}}}),
        (1, {"phases": []}),
    ],
)
def test_an_incomplete_manifest_of_an_earlier_format_is_refused(folder, tmp_path, number, values):
    with pytest.raises(ValueError, match=r"glance.json is not a complete manifest of format \d \("):
        Bundle.load(older_folder(folder, tmp_path, number, **values))


@pytest.mark.parametrize("key", ["u", "rank", "base_digest", "height"])
def test_a_key_that_an_earlier_format_lacks_is_named(folder, tmp_path, key):
    older = older_folder(folder, tmp_path, 2)
    content = json.loads((older / "glance.json").read_text())
    del content[key]
    (older / "glance.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"glance.json: the key {key} is missing"):
        Bundle.load(older)


@pytest.mark.parametrize("key", ["u", "sigmas", "steps", "handoffs"])
def test_a_list_that_is_not_what_the_phases_say_is_refused(folder, key):
    content = json.loads((folder / "glance.json").read_text())
    change(folder, **{key: content[key] + content[key][-1:]})
    with pytest.raises(ValueError, match=f"glance.json: {key} must be .* as the phases say, got "):
        Bundle.load(folder)


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
        (1, {"u": [0.5, 0.4]}),
        (0, {"sigmas": [0.5, 0.6]}),
        (0, {"steps": [0, 1]}),
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
        ({"name": "Fast", "file": "Fast.safetensors"}, "phases[1].name must match ^[a-z0-9_]+$, got 'Fast'"),
        ({"name": "../x", "file": "../x.safetensors"}, "phases[1].name must match ^[a-z0-9_]+$, got '../x'"),
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
    with pytest.raises(ValueError, match=r"glance.json: phases must have 1 or more entries, got \[\]"):
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
