"""Every tensor of a LoRA file becomes part of the change that its trainer meant, or the file is refused."""

import json
import re
from dataclasses import dataclass

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import single_file_utils
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file

from pipeline import adapters, backbones
from pipeline.adapters import lora_files
from tests import lora_layouts
from tests.lora_layouts import A_B, AUTHORS, DOWN_UP, LAYOUTS, build, each
from tests.recorded import ROOT
from tests.tiny import make_tiny_flux, make_tiny_qwen_image, make_tiny_z_image


@dataclass(frozen=True)
class Teacher:
    path: str
    backbone: object
    shapes: dict


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    paths = {
        "flux": make_tiny_flux(folder / "flux", guidance_embeds=True),
        "qwen_image": make_tiny_qwen_image(folder / "qwen_image"),
        "z_image": make_tiny_z_image(folder / "z_image"),
    }
    found = {}
    for family, path in paths.items():
        backbone = backbones.load(path, "cpu", ())
        found[family] = Teacher(path, backbone, adapters.linear_shapes(backbone.skeleton()))
    return found


def deltas(state):
    return {module: adapters.delta(state, module) for module in adapters.adapted(state)}


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for module, delta in expected.items():
        torch.testing.assert_close(got[module], delta, rtol=1e-5, atol=1e-5)


@each
def test_a_layouts_file_means_what_its_trainer_meant(teachers, tmp_path, layout, family):
    teacher = teachers[family]
    made = build(layout, family, teacher.shapes)
    assert_same(deltas(lora_files.read(made.write(tmp_path), teacher.backbone)), made.expected)


@pytest.mark.parametrize(
    ("layout", "family", "wrong"),
    [(layout, family, wrong) for layout, row in LAYOUTS.items() for family, wrong in row.stock.items()],
)
def test_stock_diffusers_reads_the_same(teachers, tmp_path, layout, family, wrong):
    """Where the stock loader takes a layout at all, without the names that it drops, misreads or refuses."""
    made = build(layout, family, teachers[family].shapes, wrong)
    made.write(tmp_path)
    pipe = DiffusionPipeline.from_pretrained(teachers[family].path)
    pipe.load_lora_weights(tmp_path, weight_name="x.safetensors", adapter_name="x")
    stock = {
        name: layer.get_delta_weight("x").detach()
        for name, layer in pipe.transformer.named_modules()
        if isinstance(layer, LoraLayer) and "x" in layer.lora_A
    }
    assert_same(stock, made.expected)


def test_the_document_lists_these_layouts():
    text = (ROOT / "docs" / "lora_files.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|`]+?) \| `([^`]+)` \| ([^|]+?) \|", text, re.MULTILINE)
    names = {"flux": "FLUX.1", "qwen_image": "Qwen-Image", "z_image": "Z-Image"}
    assert {name: families for name, _, families in rows} == {
        name: ", ".join(names[family] for family in row.families) for name, row in LAYOUTS.items()
    }
    for name, key, _ in rows:
        assert key.startswith(LAYOUTS[name].prefix) and key.endswith(LAYOUTS[name].halves[0]), name


def whole_checkpoint(names, shapes, generator):
    """Weights under the authors' names, as deltas of a full matrix each."""
    return {
        f"{name}.weight": torch.randn(
            sum(shapes[layer][0] for layer in layers), shapes[layers[0]][1], generator=generator
        )
        for name, layers in names.items()
        if layers[0] in shapes
    }


def test_the_authors_names_lead_where_diffusers_conversion_of_a_whole_checkpoint_leads(teachers, tmp_path):
    """All but FLUX's linear1, whose split diffusers writes for one width: that one is computed by hand elsewhere."""
    names, shapes = AUTHORS["flux"], teachers["flux"].shapes
    generator = torch.Generator().manual_seed(0)
    weights = whole_checkpoint(names, shapes, generator)
    width = shapes["transformer_blocks.0.attn.to_q"][0]
    rest = {name.replace(".weight", ".bias"): torch.zeros(len(weight)) for name, weight in weights.items()}
    for norm in ("double_blocks.0.img_attn", "double_blocks.0.txt_attn", "single_blocks.0"):
        rest |= {f"{norm}.norm.{which}_norm.scale": torch.zeros(width) for which in ("query", "key")}
    other_width = torch.zeros(3 * 3072 + 4 * 3072, 1)
    fixed = {"single_blocks.0.linear1.weight": other_width, "single_blocks.0.linear1.bias": other_width[:, 0]}
    converted = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers({**weights, **rest, **fixed})
    check_against(converted, weights, teachers["flux"], tmp_path, skip="single_blocks.0.linear1")


def test_z_images_names_lead_where_diffusers_conversion_leads(teachers, tmp_path):
    weights = whole_checkpoint(AUTHORS["z_image"], teachers["z_image"].shapes, torch.Generator().manual_seed(0))
    converted = single_file_utils.convert_z_image_transformer_checkpoint_to_diffusers(dict(weights))
    check_against(converted, weights, teachers["z_image"], tmp_path)


def check_against(converted, weights, teacher, folder, skip=""):
    tensors = {}
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if module != skip:  # W = W I: a pair of full rank
            tensors[f"diffusion_model.{module}.lora_A.weight"] = torch.eye(weight.shape[1])
            tensors[f"diffusion_model.{module}.lora_B.weight"] = weight
    save_file(tensors, folder / "x.safetensors")
    got = deltas(lora_files.read(folder / "x.safetensors", teacher.backbone))
    assert len(got) >= len(weights) - 1
    assert_same(got, {module: converted[f"{module}.weight"] for module in got})


FLUX_Q = "transformer_blocks.0.attn.to_q"
K = "lora_unet_double_blocks_0_img_attn_proj"


def pair(name=f"transformer.{FLUX_Q}", halves=A_B, rank=2, rows=32, columns=32, seed=0):
    """A and B of one name, and their product."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator)
    return {f"{name}.{halves[0]}": a, f"{name}.{halves[1]}": b}, b @ a


def write(folder, tensors, metadata=None, config=None, name="x.safetensors"):
    header = {"lora_adapter_metadata": metadata if isinstance(metadata, str) else json.dumps(metadata)}
    save_file(dict(tensors), folder / name, header if metadata is not None else None)
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    return folder / name


def header(**entries):
    return {f"transformer.{key}": value for key, value in entries.items()}


STRENGTHS = {  # what is said, and the factor of B A at rank 2
    "an alpha in the header": ({"metadata": header(r=2, lora_alpha=8)}, 4.0),
    "a header without prefixes": ({"metadata": {"r": 2, "lora_alpha": 8}}, 4.0),
    "a pattern for the layer": ({"metadata": header(r=2, lora_alpha=8, alpha_pattern={"to_q": 1})}, 0.5),
    "a pattern for another layer": ({"metadata": header(r=2, lora_alpha=8, alpha_pattern={"to_k": 1})}, 4.0),
    "a pattern of the rank": ({"metadata": header(r=16, lora_alpha=8, rank_pattern={FLUX_Q: 2})}, 4.0),
    "rank-stabilised": ({"metadata": header(r=2, lora_alpha=8, use_rslora=True)}, 8 / 2**0.5),
    "a header of a text encoder": ({"metadata": {"text_encoder.lora_alpha": 8}}, 1.0),
    "a configuration beside": ({"config": {"r": 2, "lora_alpha": 1}}, 0.5),
    "rank-stabilised, beside": ({"config": {"r": 2, "lora_alpha": 1, "use_rslora": True}}, 1 / 2**0.5),
    "the header before the folder": ({"metadata": header(lora_alpha=8), "config": {"lora_alpha": 1}}, 4.0),
    "nothing": ({}, 1.0),
}


@pytest.mark.parametrize("case", STRENGTHS)
def test_the_strength_is_what_the_configuration_says(teachers, tmp_path, case):
    said, factor = STRENGTHS[case]
    tensors, product = pair()
    state = lora_files.read(write(tmp_path, tensors, **said), teachers["flux"].backbone)
    torch.testing.assert_close(adapters.delta(state, FLUX_Q), factor * product)


@pytest.mark.parametrize("said", [{"metadata": header(r=2, lora_alpha=4)}, {"config": {"r": 2, "lora_alpha": 4}}])
@pytest.mark.parametrize("alpha", [torch.tensor(4.0), torch.tensor([4]), torch.tensor(4, dtype=torch.bfloat16)])
def test_an_alpha_that_is_said_twice_counts_once(teachers, tmp_path, said, alpha):
    tensors, product = pair()
    file = write(tmp_path, tensors | {f"transformer.{FLUX_Q}.alpha": alpha}, **said)
    torch.testing.assert_close(adapters.delta(lora_files.read(file, teachers["flux"].backbone), FLUX_Q), 2 * product)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_every_floating_type_is_read_whole(teachers, tmp_path, dtype):
    tensors, _ = pair()
    tensors = {key: tensor.to(dtype) for key, tensor in tensors.items()}
    a, b = (tensor.float() for tensor in tensors.values())
    state = lora_files.read(write(tmp_path, tensors), teachers["flux"].backbone)
    torch.testing.assert_close(adapters.delta(state, FLUX_Q), b @ a)


def test_a_convolution_of_one_by_one_is_a_matrix(teachers, tmp_path):
    tensors, product = pair()
    tensors = {key: tensor[:, :, None, None] for key, tensor in tensors.items()}
    state = lora_files.read(write(tmp_path, tensors), teachers["flux"].backbone)
    torch.testing.assert_close(adapters.delta(state, FLUX_Q), product)


def test_what_changes_nothing_is_passed_over(teachers, tmp_path):
    tensors, product = pair(K, DOWN_UP)
    text, _ = pair("lora_te1_text_model_encoder_layers_0_mlp_fc1", DOWN_UP)
    text["lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"].zero_()
    nothing = {f"{K}.diff_b": torch.zeros(32), "lora_unet_double_blocks_0_img_attn_norm_key_norm.diff": torch.zeros(4)}
    state = lora_files.read(write(tmp_path, tensors | text | nothing), teachers["flux"].backbone)
    assert_same(deltas(state), {"transformer_blocks.0.attn.to_out.0": product})


def test_a_change_that_is_said_fused_and_split_counts_once(teachers, tmp_path):
    """Some files of Z-Image hold both; stock diffusers drops the fused one without looking."""
    fused, product = pair("diffusion_model.layers.0.attention.qkv", ("lora.down.weight", "lora.up.weight"), rows=96)
    a, b = fused.values()
    split = {}
    for i, x in enumerate("qkv"):
        split[f"diffusion_model.layers.0.attention.to.{x}.lora.down.weight"] = a.clone()
        split[f"diffusion_model.layers.0.attention.to.{x}.lora.up.weight"] = b[32 * i : 32 * (i + 1)].clone()
    backbone = teachers["z_image"].backbone
    state = lora_files.read(write(tmp_path, fused | split), backbone)
    assert_same(
        deltas(state), {f"layers.0.attention.to_{x}": product[32 * i : 32 * (i + 1)] for i, x in enumerate("qkv")}
    )
    split["diffusion_model.layers.0.attention.to.k.lora.up.weight"] += 1
    with pytest.raises(
        ValueError, match=r"changes layers.0.attention.to_k twice, .* by diffusion_model.*to.k.lora.down"
    ):
        lora_files.read(write(tmp_path, fused | split), backbone)


GOOD, _ = pair()
KOHYA, _ = pair(K, DOWN_UP)
NAN = {key: torch.full_like(tensor, float("nan")) for key, tensor in GOOD.items() if "lora_B" in key}
Q = f"transformer.{FLUX_Q}"
REFUSED = {  # the file's tensors, and what is said of them
    "DoRA of kohya": (KOHYA | {f"{K}.dora_scale": torch.ones(32, 1)}, f"is a DoRA .{K}.dora_scale."),
    "DoRA of peft": (GOOD | {f"{Q}.lora_magnitude_vector": torch.ones(32)}, "is a DoRA .*lora_magnitude_vector"),
    "LoKr": ({f"{K}.lokr_w1": torch.ones(4, 4), f"{K}.lokr_w2": torch.ones(8, 8)}, f"is a LoKr .{K}.lokr_w1."),
    "LoHa": (KOHYA | {"lora_unet_txt_in.hada_w1_a": torch.ones(4, 4)}, "is a LoHa .lora_unet_txt_in.hada_w1_a."),
    "OFT": ({f"{K}.oft_blocks": torch.ones(4, 4)}, f"is a OFT .{K}.oft_blocks."),
    "a tucker core": (KOHYA | {f"{K}.lora_mid.weight": torch.ones(2, 2)}, f"has {K}.lora_mid.weight, which is no A, B"),
    "a scalar": (KOHYA | {f"{K}.scalar": torch.ones(1)}, f"has {K}.scalar, which is no A, B or alpha"),
    "fp8 with a scale": (GOOD | {f"{Q}.lora_A.scale_weight": torch.ones(1)}, "has .*scale_weight, which is no A, B"),
    "a bias": (KOHYA | {f"{K}.diff_b": torch.ones(32)}, f"has {K}.diff_b, a change that is no B A"),
    "a norm": (
        KOHYA | {"lora_unet_double_blocks_0_img_attn_norm_key_norm.diff": torch.ones(4)},
        "has .*diff, a change",
    ),
    "a bias of B": (GOOD | {f"{Q}.lora_B.bias": torch.ones(32)}, "has .*lora_B.bias, a change that is no B A"),
    "a whole weight": (
        GOOD | {"transformer.x_embedder.weight": torch.ones(32)},
        "has transformer.x_embedder.weight, which",
    ),
    "CLIP": (
        GOOD | pair("text_encoder.layers.0.mlp.fc1")[0],
        "of the transformer alone, got text_encoder.layers.0.mlp",
    ),
    "CLIP of kohya": (
        KOHYA | pair("lora_te1_mlp_fc1", DOWN_UP)[0],
        "transformer alone, got lora_te1_mlp_fc1.lora_down",
    ),
    "T5 of ComfyUI": (
        pair("diffusion_model.img_in", DOWN_UP)[0] | pair("text_encoders.t5xxl.transformer.x", DOWN_UP)[0],
        "transformer alone, got text_encoders.t5xxl.transformer.x.lora_down.weight",
    ),
    "two layouts": (GOOD | KOHYA, f"must keep to one layout, got {K}.lora_down.weight and {Q}.lora_A.weight"),
    "two adapters": (
        pair(f"base_model.model.{FLUX_Q}", A_B)[0]
        | pair(f"base_model.model.{FLUX_Q}", ("lora_A.default.weight", "lora_B.default.weight"))[0],
        "has base_model.model.*lora_A.weight beside .*lora_A.default.weight",
    ),
    "A without B": ({key: t for key, t in GOOD.items() if "lora_A" in key}, f"has {Q}.lora_A.weight, but no B of {Q}"),
    "B without A": ({key: t for key, t in GOOD.items() if "lora_B" in key}, f"has {Q}.lora_B.weight, but no A of {Q}"),
    "an alpha alone": (GOOD | {"transformer.x.alpha": torch.ones(1)}, "has transformer.x.alpha, but no A of"),
    "rank 0": (pair(rank=0)[0], r"of one rank above 0, got \(0, 32\) and \(32, 0\)"),
    "two ranks": (GOOD | {f"{Q}.lora_A.weight": torch.ones(3, 32)}, r"got \(3, 32\) and \(32, 2\)"),
    "a vector": (
        GOOD | {f"{Q}.lora_A.weight": torch.ones(32)},
        r"lora_A.weight must be a matrix, got the shape \(32,\)",
    ),
    "a window of 3": (GOOD | {f"{Q}.lora_A.weight": torch.ones(2, 32, 3, 3)}, "must be a matrix, got the shape"),
    "another width": (
        pair(columns=64)[0],
        rf"another base: {Q} must be \(32, 32\) as in .*, got \(32, 64\)",
    ),
    "no layer": (
        pair("transformer.nowhere")[0],
        "changes transformer.nowhere, which the transformer of .*flux does not",
    ),
    "a block too many": (
        pair("lora_unet_double_blocks_7_img_attn_proj", DOWN_UP)[0],
        "changes lora_unet_double_blocks_7",
    ),
    "NaN": (GOOD | NAN, f"{Q}.lora_B.weight must hold finite numbers, got NaN"),
    "a product too large": (
        {key: 1e25 * t for key, t in GOOD.items()},
        "lora_B.weight times .*lora_A.weight must be fin",
    ),
    "whole numbers": ({key: t.to(torch.int8) for key, t in GOOD.items()}, "lora_A.weight must hold floating-point num"),
    "an alpha of NaN": (GOOD | {f"{Q}.alpha": torch.tensor(float("nan"))}, "alpha must be one finite number, got nan"),
    "two alphas": (GOOD | {f"{Q}.alpha": torch.ones(2)}, r"alpha must be one finite number, got the shape \(2,\)"),
    "nothing": ({}, "must hold a LoRA of the transformer, got none"),
    "a checkpoint": ({"img_in.weight": torch.ones(4, 4)}, "has img_in.weight, which is no A, B or alpha of a LoRA"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_part_of_the_change_is_refused_by_the_name_that_the_file_gives_it(teachers, tmp_path, case):
    tensors, message = REFUSED[case]
    file = write(tmp_path, {key: tensor.clone() for key, tensor in tensors.items()})
    with pytest.raises(ValueError, match=message) as refusal:
        lora_files.read(file, teachers["flux"].backbone)
    assert str(refusal.value).startswith(str(file)) and "\n" not in str(refusal.value)


UNCLEAR = {
    "a rank that is another": (
        {"metadata": header(r=4, lora_alpha=8)},
        "gives .*to_q the rank 4, its matrices have the ra",
    ),
    "no alpha": ({"metadata": header(r=2)}, "must hold lora_alpha, a number, got none"),
    "an alpha of null": ({"metadata": header(r=2, lora_alpha=None)}, "must hold lora_alpha, a number, got none"),
    "an alpha of text": ({"metadata": header(lora_alpha="8")}, "lora_alpha must be a finite number, got '8'"),
    "an alpha of true": ({"metadata": header(lora_alpha=True)}, "lora_alpha must be a finite number, got True"),
    "an infinite alpha": ({"metadata": '{"transformer.lora_alpha": Infinity}'}, "must be a finite number, got inf"),
    "a pattern of text": (
        {"metadata": header(lora_alpha=1, alpha_pattern={"to_q": "x"})},
        "alpha_pattern.to_q must be",
    ),
    "a pattern that is a list": ({"metadata": header(lora_alpha=1, alpha_pattern=["to_q"])}, "alpha_pattern must map"),
    "a pattern that is no expression": ({"metadata": header(lora_alpha=1, alpha_pattern={"(": 1})}, "must map names"),
    "a header that is no JSON": ({"metadata": "{"}, "lora_adapter_metadata is not JSON"),
    "a header that is a list": ({"metadata": "[1]"}, r"lora_adapter_metadata must be a JSON object, got '\[1\]'"),
    "a folder's that is no JSON": ({"config": "{"}, "adapter_config.json is not JSON"),
    "DoRA": ({"metadata": header(lora_alpha=1, use_dora=True)}, "has use_dora: true, so that the adapter is more than"),
    "DoRA beside": ({"config": {"lora_alpha": 1, "use_dora": True}}, "adapter_config.json has use_dora: true"),
    "LoHa beside": ({"config": {"peft_type": "LOHA"}}, "peft_type must be LORA, got 'LOHA'"),
    "biases": ({"config": {"lora_alpha": 1, "bias": "all"}}, 'has bias: "all", and a change of biases cannot be used'),
    "PiSSA": (
        {"config": {"lora_alpha": 1, "init_lora_weights": "pissa_niter_4"}},
        "init_lora_weights: pissa_niter_4, wh",
    ),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_a_strength_that_is_unclear_is_refused(teachers, tmp_path, case):
    said, message = UNCLEAR[case]
    file = write(tmp_path, GOOD, **said)
    with pytest.raises(ValueError, match=message) as refusal:
        lora_files.read(file, teachers["flux"].backbone)
    assert str(refusal.value).startswith(str(tmp_path)) and "\n" not in str(refusal.value)


def test_a_folders_configuration_is_not_asked_where_the_file_says_its_alphas(teachers, tmp_path):
    tensors, product = pair()
    file = write(tmp_path, tensors | {f"{Q}.alpha": torch.tensor(4.0)}, config="{")
    torch.testing.assert_close(adapters.delta(lora_files.read(file, teachers["flux"].backbone), FLUX_Q), 2 * product)


def test_a_folder_that_peft_saved_is_read_and_another_is_refused(teachers, tmp_path):
    tensors, product = pair(f"base_model.model.{FLUX_Q}")
    write(tmp_path, tensors, config={"r": 2, "lora_alpha": 6}, name="adapter_model.safetensors")
    state = lora_files.read(tmp_path, teachers["flux"].backbone)
    torch.testing.assert_close(adapters.delta(state, FLUX_Q), 3 * product)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is a folder without adapter_model.safetensors: name the .safetensors file"):
        lora_files.read(tmp_path, teachers["flux"].backbone)


def test_a_file_that_is_missing_or_no_safetensors_is_one_sentence(teachers, tmp_path):
    file, backbone = tmp_path / "x.safetensors", teachers["flux"].backbone
    with pytest.raises(ValueError, match="x.safetensors is missing"):
        lora_files.read(file, backbone)
    file.write_text("no")
    with pytest.raises(ValueError, match="x.safetensors is no safetensors file"):
        lora_files.read(file, backbone)
    whole = write(tmp_path, GOOD).read_bytes()
    file.write_bytes(whole[:-10])  # a download that broke off
    with pytest.raises(ValueError, match="x.safetensors is no safetensors file"):
        lora_files.read(file, backbone)


def test_the_layouts_of_this_test_name_every_layer(teachers):
    """So that no layer's name goes untested."""
    for family, names in lora_layouts.AUTHORS.items():
        if family == "flux":
            named = {layer for layers in names.values() for layer in layers}
            assert named == teachers[family].shapes.keys()
