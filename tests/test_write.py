"""What a bundle holds: adapters as stock diffusers loads them, a manifest, the same bytes for the same adapters."""

import json
import re

import pytest
import torch
from peft.tuners.lora import LoraLayer

from pipeline import adapters, backbones
from pipeline.bundle.manifest import Bundle, bundle_digest
from tests.pairs import make_pair, stock, write_adapter


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("pair"))


def test_stock_diffusers_loads_the_trained_delta_of_every_module(pair):
    pipe = stock(pair.recorded, pair.bundle.folder)
    layers = {name: module for name, module in pipe.transformer.named_modules() if isinstance(module, LoraLayer)}
    base = pair.recorded.backbone().transformer
    linear = {name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)}
    assert layers.keys() == linear  # targets: all
    for phase, state in pair.states.items():
        for module, layer in layers.items():
            trained_delta = 2 * adapters.delta(state, module)  # alpha / rank = 2
            torch.testing.assert_close(layer.get_delta_weight(phase), trained_delta, rtol=1e-5, atol=1e-6)
            assert torch.equal(layer.base_layer.weight, base.get_submodule(module).weight)


def test_the_manifest_says_what_a_sampler_needs(pair):
    manifest = json.loads((pair.bundle.folder / "glance.json").read_text())
    partition = pair.recorded.partition
    assert manifest["format"] == 3
    assert manifest["base_digest"] == backbones.digest(pair.recorded.teacher)
    assert manifest["u"] == list(partition.u) and manifest["steps"] == list(partition.steps[:-1])
    slow, fast = manifest["phases"]
    assert (slow["name"], slow["file"], fast["name"], fast["file"]) == (
        *("slow", "slow.safetensors"),
        *("fast", "fast.safetensors"),
    )
    (handoff,) = manifest["handoffs"]
    assert handoff == {"step": fast["steps"][0], "u": fast["u"][0], "sigma": partition.handoff}
    assert slow["sigmas"][-1] == partition.handoff and manifest["sigmas"] == list(partition.sigmas)
    assert (manifest["family"], manifest["rank"], manifest["scale"]) == ("flux", 3, 1)
    assert manifest["base_license"] == manifest["license"] == "unknown"
    assert manifest["path"] == "consistent" and manifest["retention"] is None
    assert Bundle.load(pair.bundle.folder) == pair.bundle
    config = json.loads((pair.bundle.folder / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"] == 3


def test_the_same_adapters_give_the_same_bundle(pair, tmp_path):
    digest = bundle_digest(pair.written(tmp_path).folder)
    assert digest == bundle_digest(pair.bundle.folder)
    assert re.fullmatch("sha256:[0-9a-f]{64}", digest)
    with (tmp_path / "slow.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x00")
    assert bundle_digest(tmp_path) != digest


def test_ranks_must_agree(pair, tmp_path):
    write_adapter(pair.recorded.backbone(), tmp_path / "fast", seed=1, rank=4)
    with pytest.raises(ValueError, match="all phases must have the same rank, got 3 of slow and 4 of fast"):
        pair.written(tmp_path / "bundle", trained=pair.folders | {"fast": tmp_path / "fast"})
