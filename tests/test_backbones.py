import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from pipeline import backbones
from pipeline.backbones import base
from pipeline.backbones.packing import pack
from pipeline.backbones.teacher import Teacher
from pipeline.flow.sampling import euler
from pipeline.flow.schedule import base_levels
from tests.tiny import (
    HEIGHT,
    MAX_SEQUENCE_LENGTH,
    WIDTH,
    make_tiny_flux,
    make_tiny_qwen_image,
    make_tiny_z_image,
)

PROMPTS = ["a red star on black", "two circles", "a heart left of a ring"]
SEEDS = [7, 8, 1000]
MAKERS = {"flux": make_tiny_flux, "qwen_image": make_tiny_qwen_image, "z_image": make_tiny_z_image}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """A teacher of each family."""
    return {family: make(tmp_path_factory.mktemp(family) / "teacher") for family, make in MAKERS.items()}


@pytest.fixture(scope="module")
def path(paths):
    return paths["flux"]


@pytest.fixture(scope="module")
def backbone(path):
    return backbones.load(path, device="cpu")


def stock_run(path, height=HEIGHT, width=WIDTH, steps=6, output_type="pil", **options):
    """What the stock pipeline gives: images uint8 (B, H, W, 3), or the last latents packed."""
    pipe = DiffusionPipeline.from_pretrained(path)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(
        list(PROMPTS),  # a copy: Z-Image writes its chat template into it
        height=height,
        width=width,
        num_inference_steps=steps,
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type=output_type,
        **options,
    ).images
    if output_type == "latent":
        return pack(images) if images.ndim == 4 else images
    return np.stack([np.asarray(image) for image in images])


def our_latents(backbone, true_cfg_scale=1.0, guidance_scale=3.5, height=HEIGHT, width=WIDTH, steps=6, negative=""):
    positive, unguided = (backbone.encode(prompts, MAX_SEQUENCE_LENGTH) for prompts in (PROMPTS, [negative]))
    velocity = base.guided(
        backbone,
        positive,
        unguided,
        guidance_scale=guidance_scale,
        true_cfg_scale=true_cfg_scale,
        grid=backbone.grid(height, width),
    )
    sigmas = backbone.schedule(height, width).sigmas(base_levels(steps))
    return euler(velocity, backbone.noise(SEEDS, height, width), sigmas)


def our_images(backbone, height=HEIGHT, width=WIDTH, **options):
    x = our_latents(backbone, height=height, width=width, **options)
    return backbone.decode(x, height, width).numpy()


def largest_difference(a, b):
    return np.abs(a.astype(int) - b.astype(int)).max()


@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize(("height", "width", "true_cfg_scale"), [(64, 64, 4.0), (32, 96, 4.0), (64, 64, 1.0)])
def test_fifty_steps_end_where_those_of_the_stock_pipeline_do(paths, family, height, width, true_cfg_scale):
    backbone = backbones.load(paths[family], device="cpu")
    assert backbone.family == family
    guided = backbone.stock_guidance(true_cfg_scale, 3.5, " ") | (
        {"negative_prompt": [" "] * 3} if true_cfg_scale > 1 else {}
    )
    stock = stock_run(paths[family], height, width, 50, "latent", **guided)
    ours = our_latents(backbone, true_cfg_scale, 3.5, height, width, 50, negative=" ")
    assert ours.shape == stock.shape and ours.dtype == stock.dtype
    assert (ours - stock).norm() <= 1e-5 * stock.norm()
    assert (stock[0] - stock[1]).norm() > 0.1 * stock.norm() / 3  # prompts and seeds matter, so equality says something


@pytest.mark.parametrize("family", MAKERS)
def test_images_equal_those_of_the_stock_pipeline(paths, family):
    stock = stock_run(
        paths[family], height=32, width=96, **backbones.load(paths[family], "cpu", ()).stock_guidance(1.0, 3.5, "")
    )
    ours = our_images(backbones.load(paths[family], device="cpu"), height=32, width=96)
    assert ours.dtype == np.uint8 and ours.shape == (3, 32, 96, 3)
    assert largest_difference(ours, stock) <= 1
    assert largest_difference(stock[0], stock[1]) > 10


def test_embedded_guidance_equals_that_of_the_stock_pipeline(tmp_path):
    path = make_tiny_flux(tmp_path / "teacher", guidance_embeds=True)
    backbone = backbones.load(path, device="cpu")
    stock = stock_run(path, guidance_scale=7.0)
    assert largest_difference(our_images(backbone, guidance_scale=7.0), stock) <= 1
    x, sigma, conditioning = backbone.noise([0], 64, 64), torch.ones(1), backbone.encode(["a star"], 16)
    low, high = (backbone.velocity(x, sigma, conditioning, scale) for scale in (1.0, 7.0))
    assert not torch.allclose(low, high)


@pytest.mark.parametrize("family", MAKERS)
def test_velocity_tells_each_row_its_own_sigma_and_prompt(paths, family):
    backbone = backbones.load(paths[family], device="cpu")
    x, sigma = backbone.noise(SEEDS, HEIGHT, WIDTH), torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
    conditioning = backbone.encode(PROMPTS, MAX_SEQUENCE_LENGTH)
    together = backbone.velocity(x, sigma, conditioning, 1.0)
    for row in range(3):
        alone = backbone.velocity(x[[row]], sigma[[row]], base.index(conditioning, [row]), 1.0)
        torch.testing.assert_close(together[[row]], alone, rtol=1e-4, atol=1e-5)
    swapped = backbone.velocity(x, sigma, base.index(conditioning, [1, 0, 2]), 1.0)
    assert not torch.allclose(swapped[0], together[0], rtol=1e-3)
    torch.testing.assert_close(swapped[2], together[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "latents"), [("flux", torch.bfloat16), ("z_image", torch.float32)])
def test_weights_of_16_bits(paths, family, latents):
    backbone = backbones.load(Teacher(path=paths[family], dtype="bf16"), "cpu")
    noise = backbone.noise([3], HEIGHT, WIDTH)
    x = noise.float()
    v = backbone.velocity(x, torch.ones(1), backbone.encode(["a star"], 16), 1.0)
    assert noise.dtype == latents and v.dtype == x.dtype
    assert backbone.decode(noise, HEIGHT, WIDTH).shape == (1, HEIGHT, WIDTH, 3)


def test_the_transformer_is_frozen(backbone):
    assert not backbone.transformer.training
    assert not any(parameter.requires_grad for parameter in backbone.transformer.parameters())


@pytest.mark.parametrize(("family", "projections"), [("flux", 4 + 3), ("qwen_image", 8), ("z_image", 16)])
def test_adapter_targets_match_linear_layers(paths, family, projections):
    backbone = backbones.load(paths[family], "cpu", ("transformer",))
    linear = {name for name, module in backbone.transformer.named_modules() if isinstance(module, nn.Linear)}
    for targets in backbone.lora_targets.values():
        for target in targets:
            assert any(name == target or name.endswith(f".{target}") for name in linear), target
    assert {name for name in linear if matches(name, backbone.lora_targets["all"])} == linear
    attention = {name for name in linear if matches(name, backbone.lora_targets["attention"])}
    assert len(attention) == projections and all(".to_" in name for name in attention)


def matches(name, targets):
    from peft import LoraConfig

    return bool(check_target_module_exists(LoraConfig(target_modules=targets), name))


def test_noise_of_a_seed_does_not_depend_on_its_neighbours(backbone):
    torch.testing.assert_close(
        backbone.noise([5, 6], HEIGHT, WIDTH)[1:], backbone.noise([6], HEIGHT, WIDTH), rtol=0, atol=0
    )
    assert backbone.noise([5], HEIGHT, WIDTH).shape == (1, *backbone.latent_shape(HEIGHT, WIDTH)) == (1, 16, 32)


@pytest.mark.parametrize(("height", "width", "name"), [(72, 64, "height"), (64, 8, "width"), (0, 64, "height")])
def test_pixels_that_do_not_divide_into_tokens_are_refused(backbone, height, width, name):
    with pytest.raises(ValueError, match=f"teacher.{name} must be a positive multiple of 16 pixels, got"):
        backbone.latent_shape(height, width)


def test_a_grid_that_does_not_fit_is_refused(backbone):
    x, conditioning = backbone.noise([0], 32, 96), backbone.encode(["a star"], 16)
    with pytest.raises(ValueError, match=r"grid must be \(rows, columns\) of the 12 tokens, got \(3, 3\)"):
        backbone.velocity(x, torch.ones(1), conditioning, 1.0)


def test_only_the_parts_asked_for_are_loaded(path):
    backbone = backbones.load(path, device="cpu", parts=("transformer",))
    assert backbone.latent_shape(HEIGHT, WIDTH) == (16, 32)
    assert backbone.noise([0], HEIGHT, WIDTH).shape == (1, 16, 32)
    with pytest.raises(ValueError, match="the part 'text' was not loaded, only transformer"):
        backbone.encode(["a star"], 16)
    with pytest.raises(ValueError, match="the part 'vae' was not loaded"):
        backbone.decode(backbone.noise([0], HEIGHT, WIDTH), HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="the part 'transformer' was not loaded, only vae"):
        _ = backbones.load(path, device="cpu", parts=("vae",)).transformer


def test_a_part_that_nobody_knows_is_refused(path):
    with pytest.raises(ValueError, match="parts must be among text, transformer, vae, got unet"):
        backbones.load(path, parts=("unet",))


def test_a_broken_teacher_is_named(path, tmp_path):
    with pytest.raises(ValueError, match="nowhere is no folder"):
        backbones.load(tmp_path / "nowhere")
    broken = shutil.copytree(path, tmp_path / "broken")
    (broken / "vae" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="vae/config.json"):
        backbones.load(broken)
    (broken / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(ValueError, match="must be one of FluxPipeline, QwenImagePipeline, ZImagePipeline, got Stable"):
        backbones.load(broken)
    (broken / "model_index.json").write_text("[]")
    with pytest.raises(ValueError, match="must be one of FluxPipeline, QwenImagePipeline, ZImagePipeline, got None"):
        backbones.load(broken)
    (broken / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match="model_index.json is not a JSON file"):
        backbones.load(broken)


def test_missing_weights_are_named(path, tmp_path):
    broken = shutil.copytree(path, tmp_path / "broken")
    shutil.rmtree(broken / "text_encoder")
    with pytest.raises(ValueError, match="broken/text_encoder does not exist"):
        backbones.load(broken)
    (broken / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="broken/transformer holds no weights"):
        backbones.load(broken, parts=("transformer",))


def save(path, folder, variant=None, shards=1, parts=("transformer", "text_encoder_2", "vae")):
    """A copy of a teacher whose parts have their weights as a variant, in so many shards or more."""
    shutil.copytree(path, folder)
    pipe = DiffusionPipeline.from_pretrained(path)
    for part in parts:
        size = sum(tensor.nbytes for tensor in getattr(pipe, part).state_dict().values()) // shards
        for file in (folder / part).glob("*.safetensors"):
            file.unlink()
        getattr(pipe, part).save_pretrained(folder / part, variant=variant, max_shard_size=size + 1)
    return folder


def same_weights(one, other):
    states = [
        {name: getattr(backbone.pipeline, name).state_dict() for name in ("transformer", "text_encoder_2", "vae")}
        for backbone in (one, other)
    ]
    return all(
        torch.equal(states[0][part][key], tensor) for part, state in states[1].items() for key, tensor in state.items()
    )


@pytest.mark.parametrize("variant", ["fp16", "bf16", "own"])
@pytest.mark.parametrize("shards", [1, 3])
def test_weights_of_a_variant_are_loaded_where_no_others_are(path, backbone, tmp_path, variant, shards):
    folder = save(path, tmp_path / "teacher", variant, shards)
    for part in ("transformer", "text_encoder_2"):
        names = [file.name for file in (folder / part).iterdir()]
        assert any(name.endswith(f".index.{variant}.json") for name in names) == (shards > 1)
        assert all(variant in name for name in names if "safetensors" in name)
    (folder / "vae" / "LICENSE").touch()
    assert same_weights(backbones.load(folder, "cpu"), backbone)


def test_plain_weights_go_before_a_variant_and_one_variant_before_another(path, backbone, tmp_path):
    other = make_tiny_flux(tmp_path / "other", seed=1)
    folder = shutil.copytree(path, tmp_path / "teacher")
    name = "diffusion_pytorch_model{}.safetensors"
    shutil.copy(other / "transformer" / name.format(""), folder / "transformer" / name.format(".fp16"))
    assert same_weights(backbones.load(folder, "cpu"), backbone)
    (folder / "transformer" / name.format("")).rename(folder / "transformer" / name.format(".bf16"))
    shutil.move(folder / "vae" / name.format(""), folder / "vae" / name.format(".fp16"))
    assert same_weights(backbones.load(folder, "cpu"), backbone)


@pytest.mark.parametrize("file", ["diffusion_pytorch_model.bin", "pytorch_model.fp16.bin", "model.ckpt"])
def test_weights_that_are_pickles_alone_are_refused(path, tmp_path, file):
    folder = shutil.copytree(path, tmp_path / "teacher")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").rename(folder / "transformer" / file)
    with pytest.raises(ValueError, match=rf"transformer holds its weights only as a pickle \({file}\), which"):
        backbones.load(folder, "cpu")


def test_a_broken_variant_is_named_in_the_teachers_folder(path, tmp_path):
    folder = save(path, tmp_path / "teacher", "fp16", 3)
    next((folder / "transformer").glob("*-00002-of-*.safetensors")).unlink()
    with pytest.raises(ValueError, match=f"teacher: {folder}(?!.*glance-weights)"):
        backbones.load(folder, "cpu")


def test_a_shift_without_distinct_levels_at_a_size_is_refused_with_its_file(path, tmp_path):
    folder = shutil.copytree(path, tmp_path / "teacher")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_shift": 1e4}))
    with pytest.raises(ValueError, match=f"teacher.path: {file}: the scheduler's base_shift and max_shift must"):
        backbones.load(folder, "cpu", ()).schedule(64, 64)


def test_weights_that_are_cut_off_or_incomplete_are_named_without_loading_them(path, tmp_path):
    broken = shutil.copytree(path, tmp_path / "broken")
    backbone = backbones.load(broken, "cpu", parts=())
    backbone.check_files(backbones.PARTS)
    file = broken / "vae" / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="vae/diffusion_pytorch_model.safetensors is no whole safetensors file"):
        backbone.check_files(backbones.PARTS)
    file.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match="vae/diffusion_pytorch_model.safetensors is no whole safetensors file"):
        backbone.check_files(("vae",))
    file.write_bytes(whole)
    index = {"weight_map": {"a": file.name, "b": "model-00002-of-00002.safetensors"}}
    (file.parent / f"{file.name}.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="vae/model-00002-of-00002.safetensors is missing, which .*index.json names"):
        backbone.check_files(("vae",))
    backbone.check_files(("text", "transformer"))


def test_the_device_of_auto_and_of_a_name():
    assert backbones.resolve_device("cpu") == torch.device("cpu")
    assert backbones.resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="runtime.device or --device must be one of auto, cpu.* on this machine, got "):
        backbones.resolve_device("cuda:99")
    with pytest.raises(ValueError, match="runtime.device or --device must be auto, cpu or cuda, got tpu"):
        backbones.resolve_device("tpu")


def test_digest_follows_the_transformer_and_nothing_else(path, tmp_path):
    copy = shutil.copytree(path, tmp_path / "copy")
    assert backbones.digest(copy) == backbones.digest(path)
    assert backbones.digest(path).startswith("sha256:")
    (copy / "vae" / "notes.txt").write_text("nothing to do with adapters")
    assert backbones.digest(copy) == backbones.digest(path)
    (copy / "transformer" / ".DS_Store").touch()
    (copy / "transformer").rename(tmp_path / "shared")
    (copy / "transformer").symlink_to("../shared")
    assert backbones.digest(copy) == backbones.digest(path)
    with (copy / "transformer" / "diffusion_pytorch_model.safetensors").open("ab") as file:
        file.write(b"0")
    assert backbones.digest(copy) != backbones.digest(path)
    with pytest.raises(FileNotFoundError, match="transformer holds no file"):
        backbones.digest(tmp_path)


def test_rows_of_a_conditioning():
    conditioning = {"a": torch.arange(3.0)[:, None], "b": torch.arange(3)}
    assert base.index(conditioning, [2, 0])["b"].tolist() == [2, 0]
    assert base.repeat(conditioning, 2)["b"].tolist() == [0, 0, 1, 1, 2, 2]
    assert base.concat(conditioning, base.index(conditioning, [1]))["a"].shape == (4, 1)
    assert base.move(conditioning, "cpu")["a"].device.type == "cpu"
    with pytest.raises(ValueError, match="must have the same names"):
        base.concat(conditioning, {"a": torch.zeros(1, 1)})
