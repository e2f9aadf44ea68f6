"""The format `fused-file`: what `from_single_file` of stock diffusers loads of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel, ZImageTransformer2DModel
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from safetensors.torch import load_file, save_file

from pipeline import adapters
from pipeline.artifacts import read_json
from pipeline.bundle.formats import export, fused_file
from pipeline.families.flux import FluxBackbone
from pipeline.families.z_image import ZImageBackbone
from tests.exported import PHASES, make_bundles
from tests.lora_layouts import AUTHORS, FAMILIES

CLASSES = {
    "flux": FluxTransformer2DModel,
    "qwen_image": QwenImageTransformer2DModel,
    "z_image": ZImageTransformer2DModel,
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    return make_bundles(tmp_path_factory.mktemp("bundles"))


@pytest.mark.parametrize("family", CLASSES)
def test_from_single_file_gives_the_transformer_of_each_phase(bundles, tmp_path, caplog, family):
    bundle = bundles[family]
    manifest, config, *files = export("fused-file", bundle.folder, tmp_path / "out")
    assert [file.stem.rpartition("-")[2] for file in files] == list(PHASES)
    assert read_json(manifest) == read_json(bundle.folder / "glance.json")
    base = load_file(Path(bundle.base_model) / "transformer/diffusion_pytorch_model.safetensors")
    for file, state in zip(files, bundle.states().values(), strict=True):
        loaded = (
            CLASSES[family].from_single_file(file, config=str(tmp_path / "out"), torch_dtype=torch.float32).state_dict()
        )
        assert loaded.keys() == base.keys()
        for key, weight in base.items():
            module = key.removesuffix(".weight")
            if f"{module}.lora_A.weight" in state:
                weight = weight + adapters.delta(state, module)
            assert torch.equal(loaded[key], weight), key
    own = load_file(files[0]).keys() == base.keys()
    said = [one for one in caplog.messages if "the files keep its own keys" in one]
    assert (own, len(said)) == {"flux": (True, 1), "qwen_image": (True, 0), "z_image": (False, 0)}[family]


def test_weights_are_rounded_once(bundles, tmp_path):
    bundle = replace(bundles["qwen_image"], dtype="bf16")
    fused_file.write(bundle, tmp_path)
    base = load_file(Path(bundle.base_model) / "transformer/diffusion_pytorch_model.safetensors")
    (file,) = tmp_path.glob("*-fast.safetensors")
    module, state = "transformer_blocks.0.attn.to_q", bundle.states()["fast"]
    once = (base[f"{module}.weight"].bfloat16().float() + adapters.delta(state, module)).bfloat16()
    assert torch.equal(load_file(file)[f"{module}.weight"], once)


def test_every_parameter_of_the_published_flux_has_the_authors_name():
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(guidance_embeds=True)
    assert fused_file.takes_back(transformer, "flux", FluxBackbone.lora_names)
    weights, shapes = transformer.state_dict(), adapters.linear_shapes(transformer)
    keys = fused_file.authors_state(weights, shapes, "flux", FluxBackbone.lora_names)
    assert len(keys) == 780  # of flux1-dev.safetensors
    assert {"double_blocks.18.txt_attn.norm.key_norm.scale", "single_blocks.37.linear1.bias"} <= keys.keys()
    blocks = [key for key in keys if key.startswith(("double_blocks.0.", "single_blocks.0."))]
    assert {key.rpartition(".")[0] for key in blocks if not key.endswith("scale")} == {
        name for name in AUTHORS["flux"] if name.startswith(("double_blocks", "single_blocks"))
    }


@pytest.mark.slow
def test_from_single_file_loads_flux_at_its_published_width_from_the_authors_keys(tmp_path):
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    transformer.save_config(tmp_path)
    generator = torch.Generator().manual_seed(0)
    weights = {
        key: torch.randint(-128, 128, tensor.shape, generator=generator, dtype=torch.int8).bfloat16()
        for key, tensor in transformer.state_dict().items()
    }
    shapes = adapters.linear_shapes(transformer)
    save_file(fused_file.authors_state(weights, shapes, "flux", FluxBackbone.lora_names), tmp_path / "x.safetensors")
    loaded = FluxTransformer2DModel.from_single_file(
        tmp_path / "x.safetensors", config=str(tmp_path), torch_dtype=torch.bfloat16
    ).state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[key], weight) for key, weight in weights.items())


def test_the_published_z_image_has_the_authors_names():
    with torch.device("meta"):
        transformer = ZImageTransformer2DModel(n_layers=1)
    assert fused_file.takes_back(transformer, "z_image", ZImageBackbone.lora_names)
    weights, shapes = transformer.state_dict(), adapters.linear_shapes(transformer)
    keys = fused_file.authors_state(weights, shapes, "z_image", ZImageBackbone.lora_names)
    assert {"x_embedder.weight", "layers.0.attention.qkv.weight", "layers.0.attention.k_norm.weight"} <= keys.keys()


def test_a_parameter_that_the_authors_do_not_have_is_refused():
    with pytest.raises(ValueError, match="the authors' checkpoints of flux have no name for nowhere.scale"):
        fused_file.authors_state({"nowhere.scale": torch.zeros(1)}, {}, "flux", {})


def test_a_class_that_from_single_file_does_not_know_is_refused(bundles, tmp_path, monkeypatch):
    monkeypatch.delitem(SINGLE_FILE_LOADABLE_CLASSES, "QwenImageTransformer2DModel")
    message = "--format fused-file needs from_single_file, .* not have for QwenImageTransformer2DModel"
    with pytest.raises(ValueError, match=message):
        export("fused-file", bundles["qwen_image"].folder, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_families_of_this_project_have_their_names_listed():
    assert fused_file.OTHERS.keys() == FAMILIES.keys()
