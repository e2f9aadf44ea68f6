"""What a LoRA file holds: its layout by name, keys with a place, ranks, strength and numbers; nothing is refused."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from pipeline import adapters, backbones
from pipeline.adapters import lora_layouts, lora_names, lora_survey
from tests.lora_layouts import LAYOUTS, build, each
from tests.recorded import ROOT
from tests.tiny import make_tiny_flux, make_tiny_qwen_image, make_tiny_z_image

NOWHERE = {"none": "nowhere"}
Q = "transformer.transformer_blocks.0.attn.to_q"


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """(names in files, shapes of the layers) of each family's small teacher."""
    folder = tmp_path_factory.mktemp("teachers")
    make = {"flux": make_tiny_flux, "qwen_image": make_tiny_qwen_image, "z_image": make_tiny_z_image}
    options = {"flux": {"guidance_embeds": True}}
    found = {}
    for family, write in make.items():
        backbone = backbones.load(write(folder / family, **options.get(family, {})), "cpu", ())
        shapes = adapters.linear_shapes(backbone.skeleton())
        found[family] = lora_names.known(shapes, backbone.lora_names), shapes
    return found


@each
def test_a_file_has_the_name_of_its_layout_and_a_place_for_every_key(bases, tmp_path, layout, family):
    names, shapes = bases[family]
    made = build(layout, family, shapes)
    found = lora_survey.survey(made.write(tmp_path), names, shapes)
    assert found.layout is not None and found.layout.name == layout
    assert found.bound == found.keys == len(made.tensors) and found.unbound == ()
    assert found.layers == len(made.expected)
    ranks = {tensor.shape[0] for key, tensor in made.tensors.items() if key.endswith(LAYOUTS[layout].halves[0])}
    assert found.ranks == tuple(sorted(ranks))
    assert found.alpha == NOWHERE.get(LAYOUTS[layout].alpha, LAYOUTS[layout].alpha)
    assert found.scales == (1.0,) if found.alpha == "nowhere" else len(found.scales) > 1
    assert (found.broken, found.idle, dict(found.dtypes)["float32"]) == ((), 0, len(made.tensors))


def test_the_table_has_the_rows_of_the_document():
    text = (ROOT / "docs" / "lora_files.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|`]+?) \| `[^`]+` \| [^|]+? \| ([^|]+?) \| ([^|]+?) \|$", text, re.MULTILINE)
    said = {"nowhere": "nowhere", "header": "`lora_adapter_metadata` in the header", "tensors": "`.alpha` tensors"}
    said["folder"] = "adapter_config.json beside the file"
    wanted = [(row.name, said[row.alpha].split(":")[0], row.writers) for row in lora_layouts.LAYOUTS]
    assert [(name, alpha.split(":")[0], writers) for name, alpha, writers in rows] == wanted


def test_the_table_has_the_layouts_that_the_tests_build():
    found = {row.name: (row.prefix, row.half) for row in lora_layouts.LAYOUTS}
    assert found == {name: (row.prefix, row.halves[0]) for name, row in LAYOUTS.items()}
    assert len(found) == len(lora_layouts.LAYOUTS)


def survey(bases, folder, tensors, header=None, name="x.safetensors"):
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, folder / name, header)
    return lora_survey.survey(folder / name, *bases["flux"])


def pair(name=Q, rank=2, half="lora_{}.weight"):
    return {f"{name}.{half.format('A')}": torch.ones(rank, 32), f"{name}.{half.format('B')}": torch.ones(32, rank)}


def test_a_mix_that_no_row_has_is_no_layout(bases, tmp_path):
    assert survey(bases, tmp_path, pair(f"lora_unet_{Q}")).layout is None
    assert survey(bases, tmp_path, {}).layout is None


def test_another_place_of_alpha_makes_no_other_layout(bases, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 4}')
    found = survey(bases, tmp_path, pair())
    assert (found.layout.name, found.alpha, found.scales) == ("diffusers", "folder", (2.0,))


def test_keys_without_a_place_are_listed_as_the_file_spells_them(bases, tmp_path):
    lost = pair("transformer.nowhere") | {
        "text_encoder.x.lora_A.weight": torch.ones(2, 2),
        f"{Q}.scalar": torch.ones(1),
    }
    found = survey(bases, tmp_path, pair() | lost)
    assert set(found.unbound) == lost.keys() and (found.bound, found.layers, found.pairs) == (2, 1, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8])
def test_the_types_are_counted(bases, tmp_path, dtype):
    found = survey(bases, tmp_path, {key: tensor.to(dtype) for key, tensor in pair().items()})
    assert dict(found.dtypes) == {str(dtype).removeprefix("torch."): 2} and found.broken == ()


def test_broken_and_idle_layers_are_found(bases, tmp_path):
    k = Q.replace("to_q", "to_k")
    tensors = pair() | pair(k)
    tensors[f"{k}.lora_B.weight"] = torch.zeros(32, 2)
    tensors[f"{Q}.lora_A.weight"][1, 3] = float("inf")
    found = survey(bases, tmp_path, tensors)
    assert (found.broken, found.idle, found.pairs) == ((f"{Q}.lora_A.weight",), 1, 2)


@pytest.mark.parametrize(
    ("tensors", "header"),
    [
        (pair(rank=0), None),
        (pair(), {"lora_adapter_metadata": "{"}),
        (pair(), {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 1})}),
        (pair() | {f"{Q}.alpha": torch.ones(0)}, None),
        (pair(rank=0) | {f"{Q}.alpha": torch.ones(1)}, None),
    ],
)
def test_a_strength_that_is_unclear_is_left_open(bases, tmp_path, tensors, header):
    assert survey(bases, tmp_path, tensors, header).scales in ((), (1.0,) if header is None else ())


def test_a_half_or_a_number_in_place_of_a_matrix_is_counted_too(bases, tmp_path):
    found = survey(bases, tmp_path, {f"{Q}.lora_A.weight": torch.tensor(1.0)})
    assert (found.keys, found.bound, found.pairs, found.ranks) == (1, 1, 0, ())
    found = survey(bases, tmp_path, {f"{Q}.lora_A.weight": torch.tensor(1.0), f"{Q}.lora_B.weight": torch.ones(1)})
    assert (found.pairs, found.ranks) == (1, (0,))


def test_a_file_that_cannot_be_opened_is_refused(bases, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="x.safetensors is no safetensors file"):
        lora_survey.survey(tmp_path / "x.safetensors", *bases["flux"])
    with pytest.raises(ValueError, match="y.safetensors is missing"):
        lora_survey.survey(tmp_path / "y.safetensors", *bases["flux"])
