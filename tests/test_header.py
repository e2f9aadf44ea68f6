"""The contract in the header of an adapter's file: what it says, and that stock code still loads the file."""

import json
import os
import subprocess
import sys

import pytest
import torch
from diffusers import FluxPipeline
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline import adapters, backbones
from pipeline.bundle import header
from pipeline.bundle.manifest import Bundle
from tests.pairs import make_pair, stock
from tests.published import ROOT
from tests.tiny import make_tiny_flux, make_tiny_qwen_image, make_tiny_z_image


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("pair"))


def texts(file):
    with safe_open(file, framework="pt") as opened:
        return opened.metadata()


@pytest.mark.parametrize("phase", ["slow", "fast"])
def test_each_file_carries_the_manifest_and_its_own_phase(pair, phase):
    found = texts(pair.bundle.folder / f"{phase}.safetensors")
    manifest = json.loads((pair.bundle.folder / "glance.json").read_text())
    assert json.loads(found["glance"]) == manifest | {"phase": phase}
    assert header.read(found, pair.bundle.files[phase]) == (pair.bundle, phase)


def test_the_other_texts_are_those_that_other_tools_read(pair):
    found = texts(pair.bundle.folder / "fast.safetensors")
    sigma = pair.bundle.phases[1].sigmas[0]
    assert {key: value for key, value in found.items() if key != "glance"} == {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": f"teacher: fast, part 2 of 2, 2 of 4 steps from sigma {sigma:.4f}",
        "modelspec.architecture": "flux-1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.resolution": "64x64",
        "ss_network_dim": "3",
        "ss_network_alpha": "3",
        "ss_network_module": "networks.lora_flux",
        "ss_base_model_version": "flux1",
    }


@pytest.mark.parametrize(
    ("make", "architecture", "version"),
    [
        (lambda path: make_tiny_flux(path, guidance_embeds=True), "flux-1-dev/lora", "flux1"),
        (make_tiny_qwen_image, "Qwen-Image/lora", "qwen_image"),
        (make_tiny_z_image, "Z-Image/lora", "z_image"),
    ],
)
def test_a_family_has_the_names_of_the_usual_trainers(pair, tmp_path, make, architecture, version):
    backbone = backbones.load(make(tmp_path / "teacher"), "cpu", parts=())
    found = header.texts(pair.bundle, "slow", backbone)
    assert (found["modelspec.architecture"], found["ss_base_model_version"]) == (architecture, version)
    assert found["ss_network_module"].startswith("networks.lora_")


def test_a_family_without_such_names_has_its_own(pair):
    class Other:
        known_as = {}

    found = header.texts(pair.bundle, "slow", Other())
    assert found["modelspec.architecture"] == "flux/lora" and found["ss_base_model_version"] == "flux"


def test_stock_diffusers_and_peft_load_a_file_with_its_whole_change(pair):
    """The header has no `lora_adapter_metadata`, which diffusers would take for peft's configuration."""
    pipe = stock(pair.recorded, pair.bundle.folder)
    config = LoraConfig.from_pretrained(pair.bundle.folder)
    for phase, file in pair.bundle.files.items():
        assert "lora_adapter_metadata" not in texts(file)
        own = FluxPipeline.from_pretrained(pair.recorded.teacher).transformer
        inject_adapter_in_model(config, own, phase)
        tensors = {key.removeprefix("transformer."): tensor for key, tensor in load_file(file).items()}
        lost = set_peft_model_state_dict(own, tensors, adapter_name=phase)
        assert not lost.unexpected_keys and not [key for key in lost.missing_keys if "lora" in key]
        for module, state in ((module, pair.states[phase]) for module in adapters.adapted(pair.states[phase])):
            wanted = 2 * adapters.delta(state, module)  # alpha / rank = 2
            for transformer in (pipe.transformer, own):
                got = transformer.get_submodule(module).get_delta_weight(phase)
                torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_same_bundle_is_written_with_the_same_bytes_by_every_process(pair, tmp_path):
    code = """
import sys
from pathlib import Path
from pipeline import artifacts, backbones
from pipeline.bundle import header
from pipeline.bundle.manifest import Bundle
bundle, out = Bundle.load(sys.argv[1]), Path(sys.argv[2])
backbone = backbones.load(bundle.base(), "cpu", parts=())
for phase, state in bundle.states().items():
    tensors = {"transformer." + key: tensor for key, tensor in state.items()}
    artifacts.save_safetensors(out / f"{phase}.safetensors", tensors, header.texts(bundle, phase, backbone))
"""
    command = [sys.executable, "-c", code, str(pair.bundle.folder), str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "1"}, check=True)
    for file in pair.bundle.files.values():  # written by this process, with another seed
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_a_file_without_a_contract_has_none(pair):
    assert header.read({"format": "pt"}, pair.bundle.files["slow"]) is None


def test_a_bundle_whose_files_carry_none_is_still_read(pair, tmp_path):
    """The bundles of earlier versions are such."""
    for file in pair.bundle.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for file in pair.bundle.files.values():
        save_file(load_file(file), tmp_path / file.name, {"format": "pt"})
    assert Bundle.load(tmp_path).to_json() == pair.bundle.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-1], "is not JSON"),
        (lambda text: "[]", "format must be 1, 2 or 3, got None"),
        (lambda text: text.replace('"rank":3', '"rank":0'), "rank must be at least 1, got 0"),
        (lambda text: text.replace('"phase":"slow"', '"phase":"late"'), "phase must be one of slow, fast, got 'late'"),
        (lambda text: text.replace('"phase":"slow",', ""), "phase must be one of slow, fast, got None"),
    ],
)
def test_a_header_that_is_no_contract_is_refused(pair, change, message):
    file = pair.bundle.files["slow"]
    broken = {"glance": change(texts(file)["glance"])}
    with pytest.raises(ValueError, match=f"slow.safetensors: glance in the header.*{message}"):
        header.read(broken, file)
