"""Parts that come to the device one at a time: which is where when, and that nothing but memory changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline import backbones
from pipeline.adapters import switching
from pipeline.backbones.stock import StockBackbone
from pipeline.bundle import generating
from pipeline.bundle.manifest import Bundle
from pipeline.evaluation.samples import Shard
from pipeline.evaluation.timing import Timing, describe
from tests.evaluation_case import make_artifacts, read, small_params
from tests.published import write_bundle
from tests.test_adapters import random_state
from tests.test_evaluation_images import arm
from tests.test_trajectories import files_of, make_cache
from tests.tiny import make_tiny_flux, make_tiny_qwen_image, make_tiny_z_image

MAKERS = {"flux": make_tiny_flux, "qwen_image": make_tiny_qwen_image, "z_image": make_tiny_z_image}
PROMPTS, SEEDS = ["a red star", "two circles"], [3, 4]
TURN = [("text", "device"), ("text", "home"), ("transformer", "device"), ("transformer", "home"), ("vae", "device")]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return {family: make(tmp_path_factory.mktemp(family) / "teacher") for family, make in MAKERS.items()}


@pytest.fixture
def moves(monkeypatch):
    """Every move of a part, each of which copies as a real one does; a layer that runs away from its device fails."""
    made, place, watched = [], {}, set()
    move = StockBackbone._move

    def spied(self, part, device):
        move(self, part, device)
        place[id(self), part] = "home" if device == self.home else "device"
        made.append((part, place[id(self), part]))

        def check(layer, args):
            assert place[id(self), part] == "device", f"{part} runs at home"

        for module in self._modules(part):
            for weight in module.parameters():
                weight.data = weight.data.clone()
            if module not in watched and self.home != self.device:
                watched.add(module)
                for layer in module.modules():
                    layer.register_forward_pre_hook(check)

    monkeypatch.setattr(StockBackbone, "_move", spied)
    return made


def load(path, offload):
    """A backbone; one that offloads has a device of another name than main memory."""
    return backbones.load(path, torch.device("cpu", 0) if offload else "cpu", offload=offload)


def images(backbone):
    """Two steps of the base."""
    conditioning = backbone.encode(PROMPTS, 16)
    x = backbone.noise(SEEDS, 64, 64)
    for sigma in (1.0, 0.5):
        with torch.inference_mode():
            x = x - 0.5 * backbone.velocity(x, torch.full((2,), sigma), conditioning, 3.5)
    return backbone.decode(x, 64, 64)


@pytest.mark.parametrize("family", MAKERS)
def test_the_parts_take_turns_and_the_images_are_bitwise_the_same(paths, moves, family):
    expected = images(load(paths[family], offload=False))
    assert moves == [(part, "home") for part in backbones.PARTS], "each part is put in place once, and stays"
    moves.clear()
    backbone = load(paths[family], offload=True)
    assert moves == [(part, "home") for part in backbones.PARTS]
    moves.clear()
    assert torch.equal(images(backbone), expected)
    assert moves == TURN, "a part moves when another is asked for, and only then"
    moves.clear()
    assert torch.equal(images(backbone), expected)
    assert moves == [("vae", "home"), *TURN]
    weight = next(backbone.transformer.parameters())
    assert not weight.is_inference(), "a move within inference mode leaves weights that others can use"


def test_trajectories_are_bitwise_the_same(paths, moves, tmp_path):
    for offload in (False, True):
        make_cache(load(paths["flux"], offload), tmp_path / str(offload))
    assert files_of(tmp_path / "True") == files_of(tmp_path / "False")


@pytest.mark.parametrize("fused", [True, False])
def test_a_pair_makes_bitwise_the_same_images(paths, moves, tmp_path, fused):
    bundle = Bundle.load(write_bundle(tmp_path / "bundle"))
    made = {}
    for offload in (False, True):
        backbone = load(paths["flux"], offload)
        made[offload] = [generating.generate(backbone, bundle, PROMPTS, SEEDS, fused=fused) for _ in range(2)]
        moves.clear()
        bare = images(backbone)
    assert torch.equal(made[False][0], made[False][1]) and not torch.equal(made[False][0], bare)
    assert all(torch.equal(image, made[False][0]) for image in made[True])
    assert torch.equal(bare, images(load(paths["flux"], offload=False))), "the base is as it was"


@pytest.mark.parametrize("kind", [switching.FusedAdapters, switching.LowRankAdapters])
def test_weights_that_do_not_act_wait_at_home(paths, kind):
    backbone = backbones.load(paths["flux"], "cpu", ("transformer",))
    states = {"slow": random_state(backbone, "all", 1), "fast": random_state(backbone, "attention", 2)}
    prepared = kind(backbone.transformer, states, torch.device("meta"))
    assert not any(weight.is_meta for weight in backbone.transformer.parameters())
    for name in (*states, *([None] if kind is switching.FusedAdapters else [])):  # None: the base's own weights
        with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
            prepared.select(name)


@pytest.fixture
def compared(tmp_path, monkeypatch):
    """An evaluation's arms, and the same with parts that take turns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    make_artifacts(small_params())
    given = read(small_params())
    return given, replace(given, load=lambda: load(small_params().teacher.path, offload=True))


def test_arms_make_bitwise_the_same_images_and_a_shard_is_encoded_once(moves, compared):
    whole, offloading = compared
    shard = Shard(tuple(PROMPTS), tuple(SEEDS))
    offloading.sampler.images(arm(offloading, "fast_only"), Shard(("a star",), (0,)))
    moves.clear()
    for name in ("teacher", "student", "base_unguided", "swapped", "student"):
        expected = whole.sampler.images(arm(whole, name), shard)
        np.testing.assert_array_equal(offloading.sampler.images(arm(offloading, name), shard), expected)
    assert moves.count(("text", "device")) == 1, "for the shard's prompts and the negative one, whatever the arms"


def test_the_loop_is_timed_with_the_transformer_in_place(moves, compared):
    work = Timing(compared[1]).works(1)["student"]
    work.prepare()
    prompted = work.encode(0)
    moves.clear()
    work.decode(work.loop(prompted))
    assert moves == [("transformer", "home"), ("vae", "device")]
    assert describe(torch.device("cpu"), torch.float32, offload=True).endswith("float32, parts moved in and out")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", MAKERS)
def test_on_a_gpu(paths, family):
    whole, offloading = (backbones.load(paths[family], "cuda", offload=offload) for offload in (False, True))
    assert torch.equal(images(offloading), images(whole))
    assert {weight.device.type for weight in offloading.pipeline.vae.parameters()} == {"cuda"}
    assert {weight.device.type for weight in offloading.pipeline.transformer.parameters()} == {"cpu"}
