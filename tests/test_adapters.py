import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import adapters, backbones
from pipeline.adapters import switching
from tests.tiny import make_tiny_flux


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return make_tiny_flux(tmp_path_factory.mktemp("adapters") / "teacher", guidance_embeds=True)


@pytest.fixture
def backbone(teacher):
    return backbones.load(teacher, "cpu", parts=("transformer",))


def linear_modules(transformer):
    return {name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)}


def output(backbone):
    generator = torch.Generator().manual_seed(0)
    conditioning = {
        "prompt_embeds": torch.randn(2, 16, 24, generator=generator),
        "pooled_prompt_embeds": torch.randn(2, 16, generator=generator),
    }
    x = torch.randn(2, 16, 32, generator=generator)
    with torch.no_grad():
        return backbone.velocity(x, torch.tensor([0.9, 0.3]), conditioning, 3.5)


def random_state(backbone, targets, seed, rank=3):
    """A state with B far from 0 on every targeted module; the backbone is left bare."""
    adapters.add(backbone, "random", rank, rank, targets, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.parameters(backbone.transformer, "random"):
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    state = adapters.state(backbone.transformer, "random")
    backbone.transformer.unload_lora()
    return state


@pytest.mark.parametrize("targets", ["attention", "all"])
def test_a_new_adapter_changes_nothing_and_trains_alone(backbone, targets):
    before = output(backbone)
    adapters.add(backbone, "slow", rank=3, alpha=12, targets=targets, seed=0)
    assert torch.equal(output(backbone), before)
    trains = {id(p) for p in backbone.transformer.parameters() if p.requires_grad}
    assert trains == {id(p) for p in adapters.parameters(backbone.transformer, "slow")}


def test_an_adapter_goes_on_top_of_another(backbone):
    alone = random_state(backbone, "all", seed=1)
    adapters.add(backbone, "slow", rank=3, alpha=3, targets="attention", seed=0)
    adapters.add(backbone, "fast", rank=3, alpha=3, targets="all", seed=1)
    assert adapters.state(backbone.transformer, "fast").keys() == alone.keys()


def test_all_targets_are_every_linear_layer(backbone):
    modules = linear_modules(backbone.transformer)
    state = random_state(backbone, "all", seed=0)
    assert {key.rpartition(".lora_")[0] for key in state} == modules


def test_the_start_depends_on_the_seed_alone(backbone):
    states = []
    for seed, noise in ((5, 1), (5, 2), (6, 2)):
        torch.manual_seed(noise)
        adapters.add(backbone, "slow", rank=16, alpha=16, targets="all", seed=seed)
        states.append(adapters.state(backbone.transformer, "slow"))
        backbone.transformer.unload_lora()
    same = [all(torch.equal(states[0][key], other[key]) for key in states[0]) for other in states[1:]]
    assert same == [True, False]
    drawn = torch.cat([tensor.flatten() for key, tensor in states[0].items() if ".lora_A." in key])
    assert drawn.std().item() == pytest.approx(1 / 16, rel=0.05)


def test_unknown_targets_are_refused(backbone):
    with pytest.raises(ValueError, match="training.targets must be one of attention, all for flux, got 'some'"):
        adapters.add(backbone, "slow", rank=3, alpha=3, targets="some", seed=0)


@pytest.mark.parametrize("targets", ["attention", "all"])
def test_merged_weights_give_the_forward_of_the_low_rank_path(backbone, targets):
    adapters.add(backbone, "slow", rank=3, alpha=12, targets=targets, seed=1)
    with torch.no_grad():
        for parameter in adapters.parameters(backbone.transformer, "slow"):
            parameter.add_(0.1)
    expected = output(backbone)
    merged = adapters.merged_weights(backbone.transformer, "slow")
    adapters.select(backbone.transformer, None)
    assert (output(backbone) - expected).abs().max() > 0.01
    with torch.no_grad():
        for key, weight in merged.items():
            backbone.transformer.get_parameter(key).copy_(weight)
    torch.testing.assert_close(output(backbone), expected, rtol=1e-4, atol=1e-4)


def test_folding_the_scale_keeps_the_delta(backbone):
    state = random_state(backbone, "attention", 1)
    folded = adapters.fold_scale(state, alpha=12, rank=3)
    for key in state:
        module, _, matrix = key.rpartition(".lora_")
        if matrix == "B.weight":
            torch.testing.assert_close(adapters.delta(folded, module), 4 * adapters.delta(state, module))


def test_a_saved_adapter_comes_back_with_the_delta_it_was_trained_with(backbone, tmp_path):
    config = adapters.add(backbone, "slow", rank=3, alpha=12, targets="all", seed=1)
    with torch.no_grad():
        for parameter in adapters.parameters(backbone.transformer, "slow"):
            parameter.add_(0.1)
    trained = output(backbone)
    adapters.save(tmp_path, adapters.state(backbone.transformer, "slow"), config)
    backbone.transformer.unload_lora()
    with switching.acting(backbone.transformer, {"again": adapters.read(tmp_path)[0]}) as select:
        select("again")
        torch.testing.assert_close(output(backbone), trained, rtol=1e-4, atol=1e-4)


def test_saving_twice_gives_the_same_bytes_and_peft_reads_them(backbone, tmp_path):
    from peft import LoraConfig
    from peft.utils import load_peft_weights

    config = adapters.add(backbone, "slow", rank=3, alpha=12, targets="all", seed=1)
    state = adapters.state(backbone.transformer, "slow")
    adapters.save(tmp_path / "a", state, config)
    adapters.save(tmp_path / "b", dict(reversed(state.items())), config)
    for file in (adapters.WEIGHTS, adapters.CONFIG):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    read = LoraConfig.from_pretrained(tmp_path / "a")
    assert (read.r, read.lora_alpha, read.target_modules) == (3, 12, config.target_modules)
    weights = load_peft_weights(tmp_path / "a", device="cpu")
    assert {key.removeprefix(adapters.PEFT_PREFIX) for key in weights} == state.keys()


def test_parameter_count(backbone):
    state = random_state(backbone, "attention", 1, rank=2)
    width = 32  # 4 + 3 square projections
    assert adapters.parameter_count(state) == 7 * 2 * 2 * width


@pytest.mark.parametrize("file", [adapters.WEIGHTS, adapters.CONFIG])
def test_a_missing_file_is_named(tmp_path, file):
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(1, 2)}, tmp_path / adapters.WEIGHTS)
    (tmp_path / adapters.CONFIG).write_text(json.dumps({"r": 1, "lora_alpha": 1}))
    (tmp_path / file).unlink()
    with pytest.raises(ValueError, match=f"is no adapter: {file} is missing"):
        adapters.read(tmp_path)


def test_a_tensor_that_is_no_lora_is_refused(tmp_path):
    save_file({"base_model.model.x.weight": torch.zeros(1, 2)}, tmp_path / adapters.WEIGHTS)
    tensors = load_file(tmp_path / adapters.WEIGHTS)
    with pytest.raises(ValueError, match=r"must hold base_model.model.<module>.lora_A/B.weight only, got"):
        adapters.strip_prefix(tensors, adapters.PEFT_PREFIX, "file")


NOT_FINITE = {"x.lora_A.weight": torch.tensor([[1, torch.inf]])}


def state_of(**sizes):
    return {f"x.{name}.weight": torch.ones(size) for name, size in sizes.items()}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (state_of(lora_A=(1, 2), lora_B=(2, 1)) | NOT_FINITE, "finite numbers"),
        (state_of(lora_A=(1, 2)), "file has x.lora_A.weight, but no x.lora_B.weight"),
        (state_of(lora_B=(2, 1)), "file has x.lora_B.weight, but no x.lora_A.weight"),
        (state_of(lora_A=(1, 2), lora_B=(2, 2)), r"of one rank above 0, got \(1, 2\) and \(2, 2\)"),
        (state_of(lora_A=(0, 2), lora_B=(2, 0)), r"of one rank above 0, got \(0, 2\) and \(2, 0\)"),
        ({key: 1e20 * one for key, one in state_of(lora_A=(1, 2), lora_B=(2, 1)).items()}, "must be finite, got .* 1e"),
    ],
)
def test_what_is_no_set_of_finite_pairs_is_refused(state, message):
    with pytest.raises(ValueError, match=message):
        adapters.check_whole(state, "file")
