"""LoRA files of other trainers become bundles with the delta that their own loaders would give."""

from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from pipeline import backbones
from pipeline.adapters import lora_files
from pipeline.bundle import generating, importing
from pipeline.bundle.manifest import Bundle
from pipeline.cli import main
from tests.recorded import small_params
from tests.tiny import make_tiny_flux, make_tiny_qwen_image

MODULE = {"flux": "single_transformer_blocks.0.attn.to_q", "qwen_image": "transformer_blocks.0.attn.to_k"}
STEPS = {"slow": 2, "fast": 2}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    return {"flux": make_tiny_flux(folder / "flux"), "qwen_image": make_tiny_qwen_image(folder / "qwen")}


def matrices(rank, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rank, 32, generator=generator), torch.randn(32, rank, generator=generator)


def write(path, keys, rank=2, alpha=None, seed=0):
    """A LoRA file of one module; `keys` are those of A, B and alpha."""
    a, b = matrices(rank, seed)
    tensors = {keys[0]: a, keys[1]: b} | ({} if alpha is None else {keys[2]: torch.tensor(float(alpha))})
    save_file(tensors, path)
    return path


def diffusers_keys(module):
    return f"transformer.{module}.lora_A.weight", f"transformer.{module}.lora_B.weight", f"transformer.{module}.alpha"


def kohya_keys(module):
    name = f"lora_unet_{module.replace('.', '_')}"
    return f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"


def comfy_keys(module):
    name = f"diffusion_model.{module}"
    return f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"


@pytest.fixture
def params(teachers):
    return small_params(teachers["flux"])


def test_an_imported_pair_follows_the_teachers_own_steps_and_not_the_recorded_ones(teachers, tmp_path, params):
    files = {phase: write(tmp_path / f"{phase}.safetensors", diffusers_keys(MODULE["flux"])) for phase in STEPS}
    coarse = replace(params, trajectories=replace(params.trajectories, steps=4))
    whole = importing.bundle(files, params, tmp_path / "whole", "uniform", {"slow": 1, "fast": 2})
    assert whole.steps == (0, 3, 5)
    assert importing.bundle(files, coarse, tmp_path / "coarse", "uniform", {"slow": 1, "fast": 2}).u == whole.u


def test_the_bundle_is_loaded_by_stock_code_and_generates(teachers, tmp_path, params):
    files = {
        "slow": write(tmp_path / "s.safetensors", diffusers_keys(MODULE["flux"]), rank=2, alpha=4),
        "fast": write(tmp_path / "f.safetensors", diffusers_keys(MODULE["flux"]), rank=3, seed=1),
    }
    bundle = importing.bundle(files, params, tmp_path / "bundle", "uniform", STEPS, strength=0.5)
    assert bundle.rank == 3 and len(bundle.steps) == 4
    pipe = DiffusionPipeline.from_pretrained(teachers["flux"])
    for phase in bundle.phases:
        pipe.load_lora_weights(bundle.folder, weight_name=phase.file, adapter_name=phase.name)
    layer = pipe.transformer.get_submodule(MODULE["flux"])
    for phase, (rank, seed, scale) in {"slow": (2, 0, 2.0), "fast": (3, 1, 1.0)}.items():
        a, b = matrices(rank, seed)
        torch.testing.assert_close(layer.get_delta_weight(phase), 0.5 * scale * b @ a, rtol=1e-5, atol=1e-5)
    images = generating.generate(backbones.load(teachers["flux"], "cpu"), bundle, ["a star"], [0])
    assert images.shape == (1, 64, 64, 3)


FOREIGN = {  # the shapes of A and B, and what is said of them
    "transformer.nowhere": ((2, 4), (4, 2), "changes transformer.nowhere, which the transformer of .* does not have"),
    f"transformer.{MODULE['flux']}": (
        (2, 64),
        (64, 2),
        r"was trained for another base: .* must be \(32, 32\) as in .*, got \(64, 64\)",
    ),
    "text_encoder.x": ((2, 4), (4, 2), "must hold a LoRA of the transformer alone, got text_enc"),
}


@pytest.mark.parametrize("module", FOREIGN)
def test_a_pair_for_another_base_is_refused_and_nothing_is_written(tmp_path, params, module):
    a, b, message = FOREIGN[module]
    tensors = {f"{module}.lora_A.weight": torch.ones(a), f"{module}.lora_B.weight": torch.ones(b)}
    save_file(tensors, tmp_path / "x.safetensors")
    files = dict.fromkeys(("slow", "fast"), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=message):
        importing.bundle(files, params, tmp_path / "bundle", "official", STEPS)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("family", MODULE)
@pytest.mark.parametrize("layout", [diffusers_keys, kohya_keys, comfy_keys])
def test_keys_that_match_nothing_are_refused_alone_and_beside_good_ones(tmp_path, teachers, family, layout):
    backbone = backbones.load(teachers[family], "cpu", ())
    a, b = matrices(2, 0)
    nothing = dict(zip(layout("transformer_blocks.7.attn.to_k"), (a, b, torch.tensor(2.0)), strict=True))
    good = dict(zip(diffusers_keys(MODULE[family]), (a, b), strict=False))
    for tensors in (nothing, good | nothing):
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, tmp_path / "x.safetensors")
        with pytest.raises(ValueError, match="x.safetensors (must keep to one layout|changes .* does not have)"):
            lora_files.read(tmp_path / "x.safetensors", backbone)


@pytest.mark.parametrize("side", ["height", "width"])
def test_a_resolution_that_the_packing_cannot_divide_is_refused(tmp_path, params, side):
    file = write(tmp_path / "x.safetensors", diffusers_keys(MODULE["flux"]))
    params = replace(params, teacher=replace(params.teacher, **{side: 72}))
    with pytest.raises(ValueError, match=f"teacher.{side} must be a positive multiple of 16 pixels, got 72"):
        importing.bundle(dict.fromkeys(("slow", "fast"), file), params, tmp_path / "bundle", "uniform", STEPS)
    assert not (tmp_path / "bundle").exists()


def test_the_path_goes_into_the_bundle_and_another_one_is_refused(tmp_path, params):
    files = dict.fromkeys(("slow", "fast"), write(tmp_path / "x.safetensors", diffusers_keys(MODULE["flux"])))
    made = importing.bundle(files, params, tmp_path / "official", "uniform", STEPS, path="official")
    assert made.path == "official"
    assert "Trained elsewhere" in (made.folder / "README.md").read_text()
    with pytest.raises(ValueError, match="path must be one of consistent, official, got 'best'"):
        importing.bundle(files, params, tmp_path / "bundle", "uniform", STEPS, path="best")
    assert not (tmp_path / "bundle").exists()


def test_a_pair_with_nan_is_refused_at_the_import_and_at_generating(tmp_path, params):
    file = write(tmp_path / "x.safetensors", diffusers_keys(MODULE["flux"]))
    made = importing.bundle(dict.fromkeys(("slow", "fast"), file), params, tmp_path / "pair", "uniform", STEPS)
    for spoiled in (file, made.folder / "fast.safetensors"):
        tensors = load_file(spoiled)
        tensors[f"transformer.{MODULE['flux']}.lora_A.weight"][1, 2] = float("nan")
        save_file(tensors, spoiled)
    with pytest.raises(ValueError, match="x.safetensors: .*lora_A.weight must hold finite numbers, got NaN"):
        importing.bundle(dict.fromkeys(("slow", "fast"), file), params, tmp_path / "other", "uniform", STEPS)
    assert not (tmp_path / "other").exists()
    command = ["generate", "a star", "--bundle", str(made.folder), "--out", str(tmp_path / "images")]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1 and "fast.safetensors: " in done.output and "got NaN or infinity" in done.output
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_that_is_no_finite_number_is_refused(tmp_path, params, strength):
    file = write(tmp_path / "x.safetensors", diffusers_keys(MODULE["flux"]))
    with pytest.raises(ValueError, match="--strength must be a finite number, got (nan|inf)"):
        importing.bundle(dict.fromkeys(("slow", "fast"), file), params, tmp_path / "pair", "uniform", STEPS, strength)


def test_the_command_imports_a_pair(tmp_path, monkeypatch, teachers):
    from ruamel.yaml import YAML

    from tests.recorded import ROOT

    content = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    content["teacher"]["path"] = str(teachers["flux"])
    YAML().dump(content, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    file = str(write(tmp_path / "x.safetensors", diffusers_keys(MODULE["flux"])))
    result = CliRunner().invoke(main, ["import", file, file, "--out", "pair", "--path", "official"])
    assert result.exit_code == 0, result.output
    assert Bundle.load(tmp_path / "pair").path == "official"
    assert "pair: 10 steps, rank 2" in result.output
    official = (1, 0.96, 0.92, 0.88, 0.84, 0.8, 0.6, 0.4, 0.2, 0.02)
    assert Bundle.load(tmp_path / "pair").u == pytest.approx(official)
    again = CliRunner().invoke(main, ["import", file, file, "--out", "pair"])
    assert again.exit_code == 1 and "--out must not be there yet, got pair" in again.output
