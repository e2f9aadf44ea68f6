"""The memory estimate agrees with what is loaded, and its advice makes it smaller."""

from dataclasses import replace

import diffusers
import pytest
import torch

from measurements.gpu import MODELS, write_configs
from pipeline import backbones, memory, out_of_memory
from pipeline.backbones.teacher import Teacher
from pipeline.params import RuntimeParams
from tests.recorded import record_tiny, small_params
from tests.tiny import make_tiny_flux, make_tiny_qwen_image, make_tiny_z_image

OFFLOADED = RuntimeParams(
    device="cpu", threads=0, checkpoint_every=1, gradient_checkpointing=False, offload=True, cache_limit_gb=10
)
CHANGES = {
    "set runtime.gradient_checkpointing to true": lambda p: replace(
        p, runtime=replace(p.runtime, gradient_checkpointing=True)
    ),
    "set runtime.offload to true": lambda p: replace(p, runtime=replace(p.runtime, offload=True)),
    "lower trajectories.shard_size": lambda p: replace(p, trajectories=replace(p.trajectories, shard_size=1)),
    "lower training.batch": lambda p: replace(p, training=replace(p.training, batch=1)),
    "lower training.anchor_batch": lambda p: replace(p, training=replace(p.training, anchor_batch=1)),
    "lower evaluation.batch": lambda p: replace(p, evaluation=replace(p.evaluation, batch=1)),
    "set teacher.quantization to int8": lambda p: replace(p, teacher=replace(p.teacher, quantization="int8")),
    "set teacher.quantization to nf4": lambda p: replace(p, teacher=replace(p.teacher, quantization="nf4")),
}
QUANTISE = ["set teacher.quantization to int8", "set teacher.quantization to nf4"]
BATCHES = ["lower training.batch", "lower training.anchor_batch"]
ORDER = {
    "recording": ["lower trajectories.shard_size", *QUANTISE],
    "training": ["set runtime.gradient_checkpointing to true", *BATCHES, *QUANTISE],
    "evaluating": ["set runtime.offload to true", "lower evaluation.batch", *QUANTISE],
}
MAKERS = {"flux": make_tiny_flux, "qwen_image": make_tiny_qwen_image, "z_image": make_tiny_z_image}


def weights(params, **teacher):
    """Bytes of the transformer in the estimate: what a recording of no trajectory takes."""
    params = replace(params, teacher=replace(params.teacher, **teacher))
    shards = (replace(params, trajectories=replace(params.trajectories, shard_size=n)) for n in (1000, 2000))
    one, two = (memory.estimate(shard).recording for shard in shards)
    return (2 * one - two) / memory.OVERHEAD


@pytest.mark.parametrize("family", MAKERS)
def test_the_weights_are_those_of_the_loaded_transformer(tmp_path, family):
    path = MAKERS[family](tmp_path / "teacher")
    backbone = backbones.load(Teacher(path=path, dtype="bf16"), "cpu", ("transformer",))
    loaded = sum(weight.numel() * weight.element_size() for weight in backbone.transformer.parameters())
    assert weights(small_params(path), dtype="bf16") == pytest.approx(loaded)
    assert weights(small_params(path), dtype="bf16", quantization="nf4") < 0.5 * loaded
    assert all(weight.is_meta for weight in backbone.skeleton().parameters())
    assert memory.estimate(small_params(path)).device > loaded


def test_the_cache_is_as_large_as_estimated(tmp_path):
    recorded = record_tiny(tmp_path)
    shards = [shard for folder in (recorded.trajectories, recorded.anchors) for shard in folder.glob("shard-*")]
    written = sum(shard.stat().st_size for shard in shards)
    assert memory.estimate(recorded.params).cache == pytest.approx(written, rel=0.1)


def test_each_mend_makes_the_estimate_smaller(tmp_path):
    """For each work in its own order; with one peak above what there is, doctor names the first."""
    params = small_params(make_tiny_flux(tmp_path / "teacher"))
    for work, words in ORDER.items():
        changed = params
        seen = [memory.estimate(changed).peaks[work]]
        for change in words:
            assert out_of_memory.advice(changed, work, gpu=True)[0] == change
            changed = CHANGES[change](changed)
            seen.append(memory.estimate(changed).peaks[work])
        assert seen == sorted(seen, reverse=True) and len(set(seen)) == len(seen)
        assert out_of_memory.advice(changed, work, gpu=True) == ["lower teacher.height and width"]


def test_doctor_is_told_the_first_mend_of_the_first_work_that_does_not_fit(tmp_path, monkeypatch):
    params = small_params(make_tiny_flux(tmp_path / "teacher"))
    needed = memory.estimate(params)
    assert memory.advice(params, needed, 0) == "lower trajectories.shard_size"
    assert memory.advice(params, replace(needed, recording=1), 2) == "set runtime.gradient_checkpointing to true"
    elsewhere = replace(params, runtime=replace(params.runtime, device="cpu"))
    little = replace(needed, recording=1, training=1)
    assert memory.advice(elsewhere, little, 2) == "lower evaluation.batch", "main memory cannot be offloaded to"
    quantised = replace(elsewhere, teacher=replace(elsewhere.teacher, quantization="int8"))
    assert not any("nf4" in change for change in out_of_memory.advice(quantised, "evaluating", gpu=False)), (
        "it needs a GPU"
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    gpu = replace(params, runtime=replace(params.runtime, device="cuda"))
    assert memory.advice(gpu, little, 2) == "set runtime.offload to true"


@pytest.mark.parametrize(("dtype", "copied"), [("fp32", True), ("bf16", False)])
def test_only_full_weights_take_a_copy_of_what_the_adapters_change(tmp_path, dtype, copied):
    params = small_params(make_tiny_flux(tmp_path / "teacher"))
    params = replace(params, teacher=replace(params.teacher, dtype=dtype))
    attention, every = (
        memory.estimate(replace(params, training=replace(params.training, targets=targets))).evaluating
        for targets in ("attention", "all")
    )
    assert (attention < every) is copied and (attention == every) is not copied


@pytest.mark.parametrize("family", MAKERS)
def test_offloading_takes_the_largest_part_instead_of_all(tmp_path, family):
    path = MAKERS[family](tmp_path / "teacher")
    params = small_params(path)
    params = replace(params, teacher=replace(params.teacher, quantization="int8"))  # nothing is fused
    parts = {name: loaded_bytes(path, name) for name in ("text", "vae")}
    whole, offloaded = memory.estimate(params), memory.estimate(replace(params, runtime=OFFLOADED))
    transformer = whole.evaluating / memory.OVERHEAD - sum(parts.values())
    assert offloaded.evaluating / memory.OVERHEAD == pytest.approx(max(transformer, *parts.values()), rel=0.02)
    assert (whole.recording, whole.training) == (offloaded.recording, offloaded.training)
    assert whole.recording / memory.OVERHEAD >= parts["text"]


def loaded_bytes(path, part):
    backbone = backbones.load(path, "cpu", (part,))
    modules = [getattr(backbone.pipeline, name) for name in backbone.part_modules[part]]
    return sum(
        weight.numel() * weight.element_size()
        for module in modules
        if isinstance(module, torch.nn.Module)
        for weight in module.state_dict().values()
    )


def full_size(name, path, text_bytes):
    """Parameters of a published teacher at 1024 x 1024, one at a time; its text encoders are a file without content."""
    model = MODELS[name]
    write_configs(model, path)
    with torch.device("meta"):
        transformer = getattr(diffusers, model.transformer)(**model.config)
    transformer.save_config(path / "transformer")
    (path / "text_encoder").mkdir()
    with (path / "text_encoder" / "model.safetensors").open("wb") as file:
        file.truncate(text_bytes)
    params = small_params(path)
    return replace(
        params,
        teacher=replace(params.teacher, dtype="bf16", height=1024, width=1024, max_sequence_length=512),
        trajectories=replace(params.trajectories, shard_size=1),
        anchors=replace(params.anchors, prompts=0),
        training=replace(params.training, batch=1, targets="attention"),
        evaluation=replace(params.evaluation, batch=1),
        runtime=replace(params.runtime, gradient_checkpointing=True),
    )


def test_a_full_size_teacher_is_estimated_without_its_weights(tmp_path):
    """Qwen-Image: 20 billion parameters, 38 GiB in bfloat16."""
    params = full_size("qwen-image", tmp_path / "teacher", 0)
    plain = memory.estimate(params).training / memory.GIB
    small = memory.estimate(replace(params, teacher=replace(params.teacher, quantization="nf4"))).training / memory.GIB
    assert 38 < plain < 48 and 10 < small < 24


@pytest.mark.parametrize(("name", "text_bytes", "gigabytes"), [("qwen-image", 16.6e9, 24), ("flux-dev", 9.8e9, 16)])
def test_a_full_size_teacher_fits_a_small_gpu_in_4_bits_with_offloading(tmp_path, name, text_bytes, gigabytes):
    params = full_size(name, tmp_path / "teacher", int(text_bytes))
    params = replace(params, teacher=replace(params.teacher, quantization="nf4"))
    runtime = replace(params.runtime, offload=True)
    assert memory.estimate(replace(params, runtime=runtime)).device < gigabytes * 1e9 < memory.estimate(params).device
