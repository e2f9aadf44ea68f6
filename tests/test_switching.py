"""Adapters at work: fused or beside the layers the numbers are the same, and the base is left as it was."""

import pytest
import torch

from pipeline import adapters, backbones
from pipeline.adapters import adapted, switching
from pipeline.backbones.teacher import Teacher
from pipeline.evaluation.weights import ArmWeights
from pipeline.training import velocities
from tests.test_adapters import linear_modules, output, random_state
from tests.tiny import make_tiny_flux


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return make_tiny_flux(tmp_path_factory.mktemp("phases") / "teacher", guidance_embeds=True)


@pytest.fixture
def backbone(teacher):
    return backbones.load(teacher, "cpu", parts=("transformer",))


@pytest.mark.parametrize("targets", ["attention", "all"])
def test_fused_and_low_rank_forwards_agree(backbone, targets):
    states = {"slow": random_state(backbone, targets, 1), "fast": random_state(backbone, targets, 2)}
    bare, modules = output(backbone), linear_modules(backbone.transformer)
    seen = {}
    for fused in (True, False):
        with switching.acting(backbone.transformer, states, fused) as select:
            for name in ("slow", "fast", None, "slow"):
                select(name)
                seen[fused, name] = output(backbone)
        assert torch.equal(output(backbone), bare)
        assert linear_modules(backbone.transformer) == modules
    for name in ("slow", "fast", None):
        torch.testing.assert_close(seen[True, name], seen[False, name], rtol=1e-4, atol=1e-4)
    assert (seen[True, "slow"] - seen[True, "fast"]).abs().max() > 0.01
    assert torch.equal(seen[True, None], bare)


def test_fusing_in_the_handoff_moves_no_data(backbone):
    state = random_state(backbone, "attention", 1)
    weight = backbone.transformer.transformer_blocks[0].attn.to_q.weight
    base = weight.data_ptr()
    prepared = switching.FusedAdapters(backbone.transformer, {"slow": state})
    places = []
    for name in ("slow", None, "slow"):
        prepared.select(name)
        places.append(weight.data_ptr())
    assert places[0] == places[2] != places[1] == base


def test_phases_may_adapt_different_modules(backbone):
    bare = output(backbone)
    states = {"slow": random_state(backbone, "all", 1), "fast": random_state(backbone, "attention", 2)}
    with switching.acting(backbone.transformer, states) as select:
        select("fast")
        direct = output(backbone)
        select("slow")
        select("fast")
        assert torch.equal(output(backbone), direct)
    assert torch.equal(output(backbone), bare)


def test_a_fused_weight_is_the_sum_in_float32(backbone):
    state = random_state(backbone, "all", 1)
    wanted = {
        module: backbone.transformer.get_submodule(module).weight + adapters.delta(state, module)
        for module in adapted(state)
    }
    with switching.acting(backbone.transformer, {"slow": state}) as select:
        select("slow")
        for module, weight in wanted.items():
            assert torch.equal(backbone.transformer.get_submodule(module).weight, weight)


@pytest.mark.parametrize("fused", [True, False])
def test_a_module_that_is_not_there_is_named(backbone, fused):
    state = {"nowhere.lora_A.weight": torch.zeros(1, 2), "nowhere.lora_B.weight": torch.zeros(2, 1)}
    with pytest.raises(ValueError, match="adapter slow changes nowhere, which the transformer does not have"):
        switching.prepare(backbone.transformer, {"slow": state}, fused)


@pytest.mark.parametrize(("dtype", "kind"), [("fp32", switching.FusedAdapters), ("bf16", switching.LowRankAdapters)])
def test_the_type_of_the_weights_decides_for_product_training_and_evaluation(teacher, dtype, kind):
    base = Teacher(path=teacher, dtype=dtype)
    backbone = backbones.load(base, "cpu", parts=("transformer",))
    states = {"slow": random_state(backbone, "all", 1)}
    prepared = switching.prepare(backbone.transformer, states)
    prepared.close()
    weights = ArmWeights(backbone.transformer, states)
    weights.hold(["slow"])
    assert type(prepared) is type(weights.phases) is kind
    weights.hold([])
    merges = kind is switching.FusedAdapters
    assert base.fuses == switching.fuses(backbone.transformer) == velocities._merges(backbone) == merges


def test_one_layer_of_16_bits_is_enough(backbone):
    layer = backbone.transformer.transformer_blocks[0].attn.to_q
    assert switching.fuses(backbone.transformer)
    layer.bfloat16()
    assert switching.fusable(backbone.transformer) and not switching.fuses(backbone.transformer)


def test_quantised_weights_are_never_fused(backbone):
    layer = backbone.transformer.transformer_blocks[0].attn.to_q
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    states = {"slow": random_state(backbone, "attention", 1)}
    with pytest.raises(ValueError, match="adapters cannot be fused into quantised weights: run the products beside"):
        switching.prepare(backbone.transformer, states, fused=True)
    assert isinstance(switching.prepare(backbone.transformer, states), switching.LowRankAdapters)


class OneLayer(torch.nn.Module):
    """y = W x with W = 1 in bfloat16."""

    dtype = torch.bfloat16

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(32, 32, bias=False, dtype=self.dtype).requires_grad_(False)
        self.layer.weight.fill_(1)


@pytest.mark.parametrize(("fused", "change"), [(True, 0.0), (False, 2**-5), (None, 2**-5)])
def test_a_change_below_half_a_step_of_bfloat16_is_lost_only_in_full_weights(fused, change):
    """B A is +-2^-10 beside weights of 1, where steps are 2^-7 and 2^-8. W x is 0, so that y is B A x = 32 x 2^-10."""
    model, signs = OneLayer(), torch.tensor([1.0, -1.0]).repeat(16)
    state = {"layer.lora_A.weight": signs[None], "layer.lora_B.weight": torch.full((32, 1), 2**-10)}
    with switching.acting(model, {"slow": state}, fused) as select:
        select("slow")
        y = model.layer(signs.bfloat16())
    assert torch.equal(y, torch.full_like(y, change))
