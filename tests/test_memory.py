"""The memory estimate agrees with what is loaded, and its mend makes it smaller."""

from dataclasses import replace

import diffusers
import pytest
import torch

from benchmarks.gpu import MODELS, write_configs
from pipeline import backbones, memory
from tests.recorded import record_tiny, small_params
from tests.tiny import make_tiny_flux, make_tiny_qwen_image, make_tiny_z_image

MAKERS = {"flux": make_tiny_flux, "qwen_image": make_tiny_qwen_image, "z_image": make_tiny_z_image}


@pytest.mark.parametrize("family", MAKERS)
def test_the_weights_are_those_of_the_loaded_transformer(tmp_path, family):
    path = MAKERS[family](tmp_path / "teacher")
    backbone = backbones.load(path, "cpu", ("transformer",), "bf16")
    loaded = sum(weight.numel() * weight.element_size() for weight in backbone.transformer.parameters())
    assert memory._weights(backbone.skeleton(), "bf16", "none") == loaded
    assert memory._weights(backbone.skeleton(), "bf16", "nf4") < 0.5 * loaded
    assert all(weight.is_meta for weight in backbone.skeleton().parameters())
    assert memory.estimate(small_params(path)).device > loaded


def test_the_cache_is_as_large_as_estimated(tmp_path):
    recorded = record_tiny(tmp_path)
    written = sum(file.stat().st_size for file in recorded.trajectories.glob("shard-*"))
    assert memory.estimate(recorded.params).cache == pytest.approx(written, rel=0.1)


def test_each_mend_makes_the_estimate_smaller(tmp_path):
    params = small_params(make_tiny_flux(tmp_path / "teacher"))
    seen = []
    changes = {
        "set runtime.gradient_checkpointing to true": lambda p: replace(
            p, runtime=replace(p.runtime, gradient_checkpointing=True)
        ),
        "lower trajectories.shard_size and training.batch": lambda p: replace(
            p, trajectories=replace(p.trajectories, shard_size=1), training=replace(p.training, batch=1)
        ),
        "set teacher.quantization to int8": lambda p: replace(p, teacher=replace(p.teacher, quantization="int8")),
        "set teacher.quantization to nf4": lambda p: replace(p, teacher=replace(p.teacher, quantization="nf4")),
    }
    for text, change in changes.items():
        assert memory.mend(params) == text
        seen.append(memory.estimate(params).training)
        params = change(params)
    seen.append(memory.estimate(params).training)
    assert seen == sorted(seen, reverse=True) and len(set(seen)) == len(seen)
    assert "use a larger GPU" in memory.mend(params)


def test_a_full_size_teacher_is_estimated_without_its_weights(tmp_path):
    """Qwen-Image: 20 billion parameters, 38 GiB in bfloat16."""
    model = MODELS["qwen-image"]
    path = tmp_path / "teacher"
    write_configs(model, path)
    with torch.device("meta"):
        transformer = getattr(diffusers, model.transformer)(**model.config)
    transformer.save_config(path / "transformer")
    params = small_params(path)
    params = replace(
        params,
        teacher=replace(params.teacher, dtype="bf16", height=1024, width=1024, max_sequence_length=512),
        trajectories=replace(params.trajectories, shard_size=1),
        training=replace(params.training, batch=1, targets="attention"),
        runtime=replace(params.runtime, gradient_checkpointing=True),
    )
    plain = memory.estimate(params).training / memory.GIB
    small = memory.estimate(replace(params, teacher=replace(params.teacher, quantization="nf4"))).training / memory.GIB
    assert 38 < plain < 48 and 10 < small < 24
