import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from pipeline import adapters, backbones
from pipeline.bundle import export
from pipeline.flow.schedule import base_levels
from tests.recorded import record_tiny

PROMPTS, SEEDS = ["a red star", "a blue circle on black"], [7, 8]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record_tiny(tmp_path_factory.mktemp("recorded"))


def write_adapter(backbone, folder, seed, targets="all", rank=3):
    """A trained-looking adapter: B far from 0, alpha = 2 rank."""
    config = adapters.add(backbone, "made", rank, 2 * rank, targets, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.parameters(backbone.transformer, "made"):
            parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    state = adapters.state(backbone.transformer, "made")
    adapters.save(folder, state, config)
    backbone.transformer.unload_lora()
    return state


@pytest.fixture(scope="module")
def trained(recorded, tmp_path_factory):
    """Folders of two adapters, and their states as trained, with alpha = 2 rank."""
    folder = tmp_path_factory.mktemp("trained")
    folders = {"slow": folder / "slow", "fast": folder / "fast"}
    states = {name: write_adapter(recorded.backbone(), folders[name], i) for i, name in enumerate(folders)}
    return folders, states


@pytest.fixture(scope="module")
def bundle(recorded, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    return export.write(folder, trained[0], recorded.partition, recorded.params.teacher, recorded.params.student)


@pytest.fixture
def copied(bundle, tmp_path):
    """A bundle to break."""
    return shutil.copytree(bundle.folder, tmp_path / "bundle")


def stock(recorded, folder):
    pipe = FluxPipeline.from_pretrained(recorded.teacher)
    pipe.set_progress_bar_config(disable=True)
    for phase in export.PHASES:
        pipe.load_lora_weights(folder, weight_name=f"{phase}.safetensors", adapter_name=phase)
    return pipe


def stock_images(pipe, bundle, **options):
    slow = len(bundle.phases["slow"].steps)

    def hand_over(pipe, step, timestep, tensors):
        if step == slow - 1:
            pipe.set_adapters("fast")
        return tensors

    pipe.set_adapters("slow")
    return pipe(
        PROMPTS,
        sigmas=list(bundle.u),
        guidance_scale=3.5,
        height=64,
        width=64,
        max_sequence_length=bundle.max_sequence_length,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        callback_on_step_end=hand_over,
        output_type="np",
        **options,
    ).images


def pixels(images):
    return (images * 255).round().astype(np.int16)


def difference(images, others):
    return np.abs(np.asarray(images, dtype=np.int16) - np.asarray(others, dtype=np.int16)).max()


def test_stock_diffusers_loads_the_trained_delta_of_every_module(recorded, bundle, trained):
    pipe = stock(recorded, bundle.folder)
    layers = {name: module for name, module in pipe.transformer.named_modules() if isinstance(module, LoraLayer)}
    base = recorded.backbone().transformer
    linear = {name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)}
    assert layers.keys() == linear  # targets: all
    for phase, state in trained[1].items():
        for module, layer in layers.items():
            trained_delta = 2 * adapters.delta(state, module)  # alpha / rank = 2
            torch.testing.assert_close(layer.get_delta_weight(phase), trained_delta, rtol=1e-5, atol=1e-6)
            assert torch.equal(layer.base_layer.weight, base.get_submodule(module).weight)


@pytest.mark.parametrize("targets", ["attention", "all"])
def test_stock_diffusers_makes_the_images_of_generate(recorded, tmp_path, targets):
    for i, phase in enumerate(export.PHASES):
        write_adapter(recorded.backbone(), tmp_path / phase, i, targets)
    folders = {phase: tmp_path / phase for phase in export.PHASES}
    params = recorded.params
    bundle = export.write(tmp_path / "bundle", folders, recorded.partition, params.teacher, params.student)
    images = export.generate(recorded.backbone(backbones.PARTS), bundle, PROMPTS, SEEDS)
    pipe = stock(recorded, bundle.folder)
    assert difference(images, pixels(stock_images(pipe, bundle))) <= 1
    assert images.float().std() > 1

    pipe.set_adapters("slow")  # neither adapter alone gives these images
    swapped = replace(bundle, phases={"slow": bundle.phases["fast"], "fast": bundle.phases["slow"]})
    state = bundle.states()
    reverse = {"slow": state["fast"], "fast": state["slow"]}
    object.__setattr__(swapped, "states", lambda: reverse)
    other = export.generate(recorded.backbone(backbones.PARTS), swapped, PROMPTS, SEEDS)
    assert difference(images, other) > 1


def test_a_guided_student_is_guided_in_both(recorded, trained, tmp_path):
    student = replace(recorded.params.student, true_cfg_scale=3.0)
    teacher = replace(recorded.params.teacher, negative_prompt="a green ring")
    bundle = export.write(tmp_path, trained[0], recorded.partition, teacher, student)
    images = export.generate(recorded.backbone(backbones.PARTS), bundle, PROMPTS, SEEDS)
    expected = stock_images(
        stock(recorded, tmp_path), bundle, true_cfg_scale=3.0, negative_prompt=["a green ring"] * len(PROMPTS)
    )
    assert difference(images, pixels(expected)) <= 1
    unguided = replace(bundle, guidance=replace(bundle.guidance, student_true_cfg_scale=1.0))
    assert difference(images, export.generate(recorded.backbone(backbones.PARTS), unguided, PROMPTS, SEEDS)) > 1


def test_generating_twice_fused_or_not_gives_the_same_images(recorded, bundle):
    backbone = recorded.backbone(backbones.PARTS)
    first, low_rank, again = (export.generate(backbone, bundle, PROMPTS, SEEDS, fused) for fused in (True, False, True))
    assert torch.equal(first, again)
    assert difference(first, low_rank) <= 1
    assert first.shape == (2, 64, 64, 3) and first.dtype == torch.uint8
    alone = export.generate(backbone, bundle, PROMPTS[1:], SEEDS[1:])
    assert difference(first[1:], alone) <= 1


def test_the_models_card_runs(recorded, bundle, monkeypatch):
    card = (bundle.folder / "README.md").read_text()
    assert "license: unknown" in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    monkeypatch.chdir(bundle.folder)
    scope = {}
    exec(code, scope)
    images = export.generate(recorded.backbone(backbones.PARTS), bundle, ["a red star"], [0])
    assert difference(images[0], np.asarray(scope["image"])) <= 1


def test_the_manifest_says_what_a_sampler_needs(recorded, bundle):
    manifest = json.loads((bundle.folder / "glance.json").read_text())
    partition = recorded.partition
    assert manifest["format"] == 1
    assert manifest["base_digest"] == backbones.digest(recorded.teacher)
    assert manifest["u"] == list(partition.u) and manifest["steps"] == list(partition.steps[:-1])
    assert manifest["phases"]["slow"]["sigmas"][-1] == manifest["handoff"]["sigma"] == partition.handoff
    assert (manifest["family"], manifest["rank"], manifest["base_license"]) == ("flux", 3, "unknown")
    assert manifest["path"] == "consistent"
    assert export.Bundle.load(bundle.folder) == bundle
    config = json.loads((bundle.folder / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"] == 3


def test_the_same_adapters_give_the_same_bundle(recorded, bundle, trained, tmp_path):
    params = recorded.params
    again = export.write(tmp_path, trained[0], recorded.partition, params.teacher, params.student)
    digest = export.bundle_digest(again.folder)
    assert digest == export.bundle_digest(bundle.folder)
    assert re.fullmatch("sha256:[0-9a-f]{64}", digest)
    with (tmp_path / "slow.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x00")
    assert export.bundle_digest(tmp_path) != digest


def test_seeds_and_prompts_must_pair(recorded, bundle):
    with pytest.raises(ValueError, match="every prompt needs a seed, got 2 prompts and 1 seeds"):
        export.generate(recorded.backbone(), bundle, PROMPTS, [1])


def test_ranks_must_agree(recorded, trained, tmp_path):
    write_adapter(recorded.backbone(), tmp_path / "fast", 1, rank=4)
    folders = trained[0] | {"fast": tmp_path / "fast"}
    params = recorded.params
    with pytest.raises(ValueError, match="slow and fast must have the same rank, got 3 and 4"):
        export.write(tmp_path / "bundle", folders, recorded.partition, params.teacher, params.student)


@pytest.mark.parametrize("file", ["slow.safetensors", "fast.safetensors", "glance.json", "adapter_config.json"])
def test_a_missing_file_is_named(copied, file):
    (copied / file).unlink()
    with pytest.raises(ValueError, match=f"is no bundle: {file} is missing"):
        export.Bundle.load(copied)


def change(folder, **values):
    path = folder / "glance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_another_format_is_refused(copied):
    change(copied, format=2)
    with pytest.raises(ValueError, match="format must be 1, got 2"):
        export.Bundle.load(copied)


def test_an_incomplete_manifest_is_refused(copied):
    change(copied, phases={"slow": {}})
    with pytest.raises(ValueError, match="is not a complete manifest"):
        export.Bundle.load(copied)


def test_an_older_manifest_without_a_path_is_consistent(copied, bundle):
    content = json.loads((copied / "glance.json").read_text())
    del content["path"]
    (copied / "glance.json").write_text(json.dumps(content))
    assert export.Bundle.load(copied) == replace(bundle, folder=copied)


@pytest.mark.parametrize("value", ["best", None])
def test_an_unknown_path_is_refused(copied, value):
    change(copied, path=value)
    with pytest.raises(ValueError, match=rf"glance.json: path must be one of consistent, official, got {value!r}"):
        export.Bundle.load(copied)


def test_an_official_bundle_is_sampled_on_its_path_and_its_card_claims_no_stock_call(recorded, trained, tmp_path):
    params, backbone = recorded.params, recorded.backbone(backbones.PARTS)
    arguments = (trained[0], recorded.partition, params.teacher, params.student)
    official = export.write(tmp_path / "official", *arguments, path="official")
    told = []
    plan = official.plan(backbone)
    tokens = backbone.schedule(64, 64)
    expected = [tokens.sigmas(base_levels(8))[:3].diff(), tokens.sigmas(base_levels(2)).diff()]
    torch.testing.assert_close(plan.moves, torch.cat(expected))
    torch.testing.assert_close(plan.sigmas, backbone.schedule(1024, 1024).sigmas(official.u))
    assert plan.adapters == ("slow", "slow", "fast", "fast")

    velocity = backbone.velocity

    def watched(x, sigma, *arguments):
        told.append(sigma[0].item())
        return velocity(x, sigma, *arguments)

    backbone.velocity = watched
    images = export.generate(backbone, official, PROMPTS, SEEDS)
    np.testing.assert_allclose(told, plan.sigmas[:-1], atol=1e-6)
    consistent = replace(official, path="consistent")
    assert difference(images, export.generate(recorded.backbone(backbones.PARTS), consistent, PROMPTS, SEEDS)) > 1

    card = (official.folder / "README.md").read_text()
    assert "```python" not in card and "sigmas=[" not in card and "$" not in card
    assert 'glance generate "a red star" --bundle .' in card and "A stock pipeline does not do that" in card


def test_phases_that_do_not_join_are_refused(copied, bundle):
    phases = json.loads((copied / "glance.json").read_text())["phases"]
    phases["fast"]["sigmas"][0] += 0.01
    change(copied, phases=phases)
    with pytest.raises(ValueError, match="slow must end where fast starts, and sigma go down to 0"):
        export.Bundle.load(copied)


def test_another_rank_than_stated_is_refused(copied):
    change(copied, rank=8)
    with pytest.raises(ValueError, match=r"slow.safetensors must have rank 8, as glance.json says, got \[3\]"):
        export.Bundle.load(copied)


def test_a_file_that_is_no_safetensors_is_refused(copied):
    (copied / "fast.safetensors").write_bytes(b"not at all")
    with pytest.raises(ValueError, match="fast.safetensors is no safetensors file"):
        export.Bundle.load(copied)


def test_a_foreign_tensor_is_refused(copied):
    tensors = load_file(copied / "slow.safetensors")
    save_file(tensors | {"text_encoder.x": torch.zeros(1)}, copied / "slow.safetensors")
    with pytest.raises(ValueError, match="must hold transformer.<module>.lora_A/B.weight only, got 'text_encoder.x'"):
        export.Bundle.load(copied)
