"""A quantised teacher: its adapters train and act as low-rank modules."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from pipeline import adapters, backbones
from pipeline.adapters import switching
from pipeline.backbones import base, quantization
from pipeline.backbones.quantization import PACKAGES
from pipeline.backbones.teacher import Teacher
from pipeline.recording.trajectories import Trajectories
from pipeline.training import jobs, loop
from tests.recorded import record_tiny


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record_tiny(tmp_path_factory.mktemp("recorded"))


def load(recorded, quantization, parts=("transformer",)):
    return backbones.load(Teacher(path=recorded.teacher, dtype="bf16", quantization=quantization), "cpu", parts)


def output(backbone, recorded):
    conditioning = Trajectories(recorded.trajectories).conditioning([0, 1])
    x = backbone.noise([1, 2], 64, 64)
    with torch.no_grad():
        velocity = base.guided(backbone, conditioning, None, guidance_scale=3.5, true_cfg_scale=1)
        return velocity(x, torch.tensor([0.9, 0.4])).float()


needs_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="pip install -e '.[quantization]'")


@needs_torchao
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_eight_bits_a_weight_nearly_keep_the_velocity(recorded, kind):
    plain, quantised = load(recorded, "none"), load(recorded, kind)
    assert switching.fusable(plain.transformer) and not switching.fusable(quantised.transformer)
    error = (output(quantised, recorded) - output(plain, recorded)).norm() / output(plain, recorded).norm()
    assert 0 < error < 0.1


@needs_torchao
def test_an_adapter_trains_on_a_quantised_base_and_acts_there(recorded, tmp_path):
    backbone = load(recorded, "int8")
    bare = output(backbone, recorded)
    job = jobs.of_phase(recorded.params, recorded.loaded(), "slow")
    job = replace(job, settings=replace(job.settings, train_steps=30, learning_rate=0.01))
    history = loop.train_to(tmp_path, backbone, Trajectories(recorded.trajectories), job)
    assert sum(r.loss for r in history[-5:]) < 0.9 * sum(r.loss for r in history[:5])
    assert torch.equal(output(backbone, recorded), bare), "the base is as it was"

    state, _ = adapters.read(tmp_path)
    with switching.acting(backbone.transformer, {"slow": state}) as select:  # beside the layers
        assert torch.equal(output(backbone, recorded), bare)
        select("slow")
        assert not torch.allclose(output(backbone, recorded), bare, rtol=1e-2)
    assert torch.equal(output(backbone, recorded), bare)


@needs_torchao
def test_only_the_transformer_is_quantised(recorded):
    backbone = load(recorded, "int8", backbones.PARTS)
    assert switching.fusable(backbone.pipeline.text_encoder_2)


@pytest.mark.parametrize("kind", [kind for kind, package in PACKAGES.items() if find_spec(package) is None])
def test_a_package_that_is_not_installed_is_named(recorded, kind):
    with pytest.raises(ValueError, match=f"teacher.quantization {kind} needs {PACKAGES[kind]}: pip install"):
        load(recorded, kind)


def test_four_bits_without_a_gpu_are_refused(recorded, monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda name: name)
    with pytest.raises(ValueError, match="teacher.quantization nf4 needs a GPU, got the device cpu: int8 and fp8 run"):
        load(recorded, "nf4")
