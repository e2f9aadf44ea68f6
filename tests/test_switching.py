"""Adapters at work: fused or beside the layers the numbers are the same, and the base is left as it was."""

import pytest
import torch

from pipeline import backbones
from pipeline.adapters import adapted, switching
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


@pytest.mark.parametrize("fused", [True, False])
def test_a_module_that_is_not_there_is_named(backbone, fused):
    state = {"nowhere.lora_A.weight": torch.zeros(1, 2), "nowhere.lora_B.weight": torch.zeros(2, 1)}
    with pytest.raises(ValueError, match="adapter slow changes nowhere, which the transformer does not have"):
        switching.prepare(backbone.transformer, {"slow": state}, fused)


def test_phases_are_fused_only_where_their_copies_fit(backbone, monkeypatch):
    states = {name: random_state(backbone, "attention", seed) for seed, name in enumerate(("slow", "fast"))}
    names = {f"{module}.weight" for module in adapted(states["slow"])}
    weights = dict(backbone.transformer.named_parameters())
    taken = 2 * sum(weights[name].nbytes for name in names)
    assert switching.copies(backbone.transformer, states) == taken
    for room, kind in ((taken, switching.FusedAdapters), (taken - 1, switching.LowRankAdapters)):
        monkeypatch.setattr(switching, "room", lambda device, room=room: room)
        prepared = switching.prepare(backbone.transformer, states)
        assert isinstance(prepared, kind)
        prepared.close()
