"""`glance check`: one line per finding on anybody's LoRA, exit code 0 if it can be used, 1 with the reason if not."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline import adapters, backbones
from pipeline.artifacts import save_safetensors
from pipeline.bundle import checkup
from pipeline.bundle.checkup import likeness
from pipeline.bundle.formats import export, one_file
from pipeline.bundle.parts import Retention
from pipeline.cli import main
from tests.lora_layouts import build
from tests.pairs import make_pair
from tests.published import ROOT
from tests.tiny import make_tiny_flux, make_tiny_qwen_image, make_tiny_z_image

RETENTION = Retention(value=0.9, low=0.8, high=1, score="scenes", prompts=9, student_forwards=4, teacher_forwards=16)
Q = "transformer.transformer_blocks.0.attn.to_q"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def base(pair):
    return pair.recorded.teacher


@pytest.fixture
def folder(pair, tmp_path):
    """The pair's bundle, to break."""
    return shutil.copytree(pair.bundle.folder, tmp_path / "bundle")


def never():
    raise AssertionError("the base was named")


def check(path, base=None):
    report = checkup.check(path, base, never)
    return report, {(one.file, one.name): one for one in report.findings}


def said(found, name, file=None):
    """The level and the text of a finding."""
    one = found[file, name]
    return one.level, one.text


def of_one(path, base):
    """The findings on one file by name, and the reason why it cannot be used."""
    report, _ = check(path, base)
    assert {one.file for one in report.findings} == {path.name}
    return {one.name: (one.level, one.text) for one in report.findings}, report.reason


def plain(a=None, b=None, name=Q):
    a, b = (torch.ones(2, 32) if a is None else a), (torch.ones(32, 2) if b is None else b)
    return {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}


def write(folder, tensors, header=None):
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, folder / "x.safetensors", header)
    return folder / "x.safetensors"


def test_a_bundle_is_as_it_should_be(pair, base):
    report, found = check(pair.bundle.folder)
    assert report.reason is None and report.base == base
    assert {one.level for one in report.findings if one.name != "retention"} == {"ok"}
    assert said(found, "bundle") == ("ok", "glance.json of format 3 with 2 files of rank 3")
    assert said(found, "digest") == ("ok", f"the contract is for {base}, and {base} has its digest")
    sigma = pair.bundle.phases[1].sigmas[0]
    assert said(found, "phases")[1] == f"slow 2 steps from sigma 1.0000, fast 2 steps from sigma {sigma:.4f}"
    assert said(found, "levels")[1].startswith("u 1 0.75 0.5 0.25; sigma 1 ")
    assert said(found, "levels")[1].endswith(" 0 at 64 x 64")
    assert said(found, "guidance")[1] == "true CFG 1, embedded guidance 3.5, solver euler, path consistent"
    assert said(found, "licence")[1] == "unknown; of the base: unknown"
    assert said(found, "retention") == ("note", "not measured")
    layers = len(adapters.adapted(pair.states["slow"]))
    for phase in ("slow", "fast"):
        file = f"{phase}.safetensors"
        assert said(found, "layout", file)[1].startswith("diffusers, as written by diffusers, ")
        bind = f"{2 * layers} of {2 * layers} keys bind to {layers} of the {layers} linear layers of {base}"
        assert said(found, "keys", file) == ("ok", bind)
        assert said(found, "rank", file)[1] == "3 in all layers"
        assert said(found, "strength", file)[1] == "alpha in adapter_config.json; the scale is 1 in all layers"
        assert said(found, "numbers", file)[1] == "float32, all finite, and every layer changes"
        assert "flux1 (ss_base_model_version)" in said(found, "base", file)[1]
        assert said(found, "use", file) == ("ok", f"every tensor is part of the change of {base}")
        assert said(found, "contract", file)[1] == f"the file is the phase {phase}, and agrees with glance.json"


def test_a_measured_bundle_says_what_it_keeps(pair, tmp_path):
    bundle = pair.written(tmp_path / "bundle", retention=RETENTION)
    _, found = check(bundle.folder)
    text = "90.0 % of the teacher's score scenes (80.0 to 100.0 %) on 9 prompts, in 4 forwards instead of 16"
    assert said(found, "retention") == ("ok", text)


def test_a_bundle_of_an_earlier_format_without_headers_can_be_used(folder):
    content = json.loads((folder / "glance.json").read_text())
    (folder / "glance.json").write_text(json.dumps(content | {"format": 2}))
    for name in ("slow.safetensors", "fast.safetensors"):
        save_file(load_file(folder / name), folder / name)
    report, found = check(folder)
    assert report.reason is None
    assert said(found, "bundle")[1].startswith("glance.json of format 2 with 2 files")
    assert said(found, "contract", "slow.safetensors") == ("note", "none in the header")


def test_a_bundle_on_another_base_cannot_be_used(pair, tmp_path):
    other = make_tiny_flux(tmp_path / "other", seed=1)
    report, found = check(pair.bundle.folder, other)
    assert said(found, "digest")[0] == "FAIL"
    assert report.reason == (
        f"the contract is for another model than {other}: {pair.bundle.base_digest}, not {backbones.digest(other)}"
    )


def test_a_lora_of_the_base_that_is_missing_is_said(folder):
    content = json.loads((folder / "glance.json").read_text())
    loras = [{"file": "style.safetensors", "weight": 1.0, "sha256": None}]
    (folder / "glance.json").write_text(json.dumps(content | {"loras": loras}))
    report, found = check(folder)
    assert said(found, "digest")[1].startswith("the digest of ")
    assert "cannot be computed: the LoRA loras/style.safetensors is missing" in report.reason


def test_a_broken_bundle_is_one_finding(folder):
    content = json.loads((folder / "glance.json").read_text())
    (folder / "glance.json").write_text(json.dumps(content | {"rank": 0}))
    report, found = check(folder)
    assert said(found, "bundle") == ("FAIL", f"{folder}/glance.json: rank must be at least 1, got 0")
    assert len(report.findings) == 1 and report.base is None and report.to_json()["base"] is None


def test_files_that_changed_places_are_found(folder):
    (folder / "slow.safetensors").rename(folder / "x")
    (folder / "fast.safetensors").rename(folder / "slow.safetensors")
    (folder / "x").rename(folder / "fast.safetensors")
    report, _ = check(folder)
    assert report.reason == "the file is the phase fast, and glance.json says slow"


def test_a_header_that_differs_from_the_manifest_is_noted(folder):
    content = json.loads((folder / "glance.json").read_text())
    (folder / "glance.json").write_text(json.dumps(content | {"license": "mit", "height": 96}))
    report, found = check(folder)
    text = "the header and glance.json differ in license, height; glance.json counts"
    assert said(found, "contract", "slow.safetensors") == ("note", text) and report.reason is None


def test_a_file_alone_shows_the_contract_that_it_carries(pair, base, tmp_path):
    file = shutil.copy(pair.bundle.files["fast"], tmp_path / "x.safetensors")
    found, reason = of_one(file, base)
    assert reason is None
    assert found["contract"] == ("ok", "the file is the phase fast of slow, fast")
    assert found["digest"][0] == found["levels"][0] == found["phases"][0] == "ok"
    assert found["strength"][1] == "no alpha, so alpha = rank; the scale is 1 in all layers"


def test_a_file_with_a_contract_for_another_base_cannot_be_used(pair, tmp_path):
    file = shutil.copy(pair.bundle.files["fast"], tmp_path / "x.safetensors")
    _, reason = of_one(file, make_tiny_flux(tmp_path / "other", seed=1))
    assert reason.startswith("the contract is for another model than ")


def test_a_file_with_a_broken_contract_cannot_be_used(pair, base, tmp_path):
    with safe_open(pair.bundle.files["fast"], framework="pt") as opened:
        texts = opened.metadata()
    file = tmp_path / "x.safetensors"
    save_safetensors(file, load_file(pair.bundle.files["fast"]), texts | {"glance": "{}"})
    _, reason = of_one(file, base)
    assert reason == f"{file}: glance in the header: format must be 1, 2 or 3, got None"


@pytest.mark.parametrize("layout", ["kohya", "ComfyUI", "OneTrainer", "XLabs", "diffusers with metadata"])
def test_a_file_of_any_trainer_is_named(base, tmp_path, layout):
    backbone = backbones.load(base, "cpu", ())
    file = build(layout, "flux", adapters.linear_shapes(backbone.skeleton())).write(tmp_path)
    found, reason = of_one(file, base)
    assert reason is None and found["layout"][1].startswith(f"{layout}, as written by ")
    assert found["base"] == ("note", "the file names none")
    assert found["contract"] == ("note", "none in the header: `glance import` takes the steps from --rule or --levels")
    assert found["rank"][1] == "2 to 4"


def test_a_folder_that_peft_saved_is_one_adapter(pair, base):
    folder = pair.folders["slow"]
    found, reason = of_one(folder, base)
    assert reason is None and found["layout"][1] == "peft folder, as written by peft's `save_pretrained`"
    assert found["strength"] == ("ok", "alpha in adapter_config.json; the scale is 2 in all layers")


def test_a_folder_of_files_is_checked_file_by_file(pair, base, tmp_path):
    for file in pair.bundle.files.values():
        shutil.copy(file, tmp_path)
    report, found = check(tmp_path, base)
    assert {file for file, _ in found} == {"slow.safetensors", "fast.safetensors"} and report.reason is None


@pytest.mark.parametrize(("family", "make"), [("qwen_image", make_tiny_qwen_image), ("z_image", make_tiny_z_image)])
def test_a_file_of_another_family_is_named(base, tmp_path, family, make):
    backbone = backbones.load(make(tmp_path / "teacher"), "cpu", ())
    made = build("ai-toolkit", family, adapters.linear_shapes(backbone.skeleton()))
    found, reason = of_one(made.write(tmp_path), base)
    level, text = found["keys"]
    assert level == "FAIL" and reason == text
    assert f"; {len(made.tensors)} are names of the family {family}; without a place: diffusion_model." in text
    assert found["layout"][1].startswith("ai-toolkit, ") and found["use"][0] == "FAIL"


def test_a_file_of_a_larger_model_of_the_family_is_named(base, tmp_path):
    names = [f"transformer.transformer_blocks.{i}.attn.to_q" for i in (0, 7)]
    file = write(tmp_path, plain(name=names[0]) | plain(name=names[1]))
    found, reason = of_one(file, base)
    assert "; 4 are names of a larger model of the family flux; without a place: " in found["keys"][1]
    assert found["keys"][0] == "note" and f"changes {names[1]}, which the transformer of" in reason


MARKS = {
    "lora_unet_down_blocks_0_attentions_0_proj_in": "Stable Diffusion 1, 2 or XL",
    "unet.up_blocks.0.attentions.0.proj_in": "Stable Diffusion 1, 2 or XL",
    "lora_unet_input_blocks_4_1_proj_in": "Stable Diffusion 1, 2 or XL",
    "lora_unet_joint_blocks_0_x_block_attn_proj": "Stable Diffusion 3",
    "diffusion_model.blocks.0.self_attn.q": "Wan",
    "lora_unet_blocks_0_cross_attn_q": "Wan",
    "transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj": "FLUX.2",
}


@pytest.mark.parametrize("name", MARKS)
def test_a_file_of_a_model_that_is_no_family_here_is_named(base, tmp_path, name):
    found, reason = of_one(write(tmp_path, plain(name=name)), base)
    assert found["keys"][0] == "FAIL" and f"; the names look like {MARKS[name]}; without a place: {name}" in reason


def test_names_of_nothing_that_is_known_are_listed(base, tmp_path):
    tensors = {}
    for i in range(3):
        tensors |= plain(name=f"transformer.nowhere.{i}")
    found, reason = of_one(write(tmp_path, tensors), base)
    assert found["keys"][1].endswith("nowhere.1.lora_A.weight, ...") and "names" not in found["keys"][1]
    assert reason.startswith("0 of 6 keys bind to 0 of the ")


BROKEN = {  # tensors, the finding, and what it says
    "NaN": (plain(a=torch.full((2, 32), float("nan"))), "numbers", f"float32; NaN or infinity in {Q}.lora_A.weight"),
    "zero": (plain(b=torch.zeros(32, 2)), "numbers", "float32; the file changes nothing: A or B is 0 in every layer"),
    "empty": ({}, "keys", "linear layers of .*, since the file is empty"),
    "another width": (plain(b=torch.ones(64, 2)), "use", "was trained for another base: "),
    "DoRA": (plain() | {f"{Q}.lora_magnitude_vector": torch.ones(32)}, "use", "is a DoRA"),
    "a half": ({f"{Q}.lora_A.weight": torch.ones(2, 32)}, "use", f"but no B of {Q}"),
    "two ranks": (plain(b=torch.ones(32, 3)), "use", "must be .rank, in. and .out, rank. of one rank above 0"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_used_is_a_failure_with_its_reason(base, tmp_path, case):
    tensors, name, message = BROKEN[case]
    found, reason = of_one(write(tmp_path, tensors), base)
    assert found[name][0] == "FAIL" and reason is not None
    assert re.search(message, found[name][1])


def test_weights_that_are_no_lora_are_not_called_without_effect(base, tmp_path):
    found, reason = of_one(write(tmp_path, {"x_embedder.weight": torch.ones(32, 8)}), base)
    assert found["numbers"] == ("ok", "float32, all finite") and reason.startswith("0 of 1 keys bind")
    empty, _ = of_one(write(tmp_path, {}), base)
    assert empty["numbers"] == ("ok", "no numbers")


def test_layers_without_effect_are_noted(base, tmp_path):
    tensors = plain() | plain(b=torch.zeros(32, 2), name=Q.replace("to_q", "to_k"))
    found, reason = of_one(write(tmp_path, tensors), base)
    assert found["numbers"] == ("note", "float32, all finite; 1 of 2 layers do not change") and reason is None


def test_keys_without_a_place_that_change_nothing_are_noted(base, tmp_path):
    """As the reader passes over them."""
    file = write(tmp_path, plain() | {f"{Q}.diff_b": torch.zeros(32)})
    found, reason = of_one(file, base)
    assert found["keys"][0] == "note" and found["keys"][1].endswith(f"without a place: {Q}.diff_b") and reason is None


def test_a_layout_and_a_strength_that_are_unclear_are_noted(base, tmp_path):
    header = {"lora_adapter_metadata": json.dumps({"transformer.r": 9, "transformer.lora_alpha": 1})}
    name = f"transformer.{'double_blocks.0.img_attn.proj'}"
    found, reason = of_one(write(tmp_path, plain(name=name), header), base)
    assert found["layout"] == ("note", "none of docs/lora_files.md")
    assert found["strength"] == ("note", "alpha in the header; the scale alpha / rank is unclear")
    assert "gives double_blocks.0.img_attn.proj the rank 9, its matrices have the rank 2" in reason


@pytest.mark.parametrize(
    ("header", "level", "text"),
    [
        ({"ss_base_model_version": "flux1"}, "ok", "the file names flux1 (ss_base_model_version)"),
        ({"modelspec.architecture": "FLUX.1/LoRA"}, "ok", "the file names FLUX.1/LoRA (modelspec.architecture)"),
        (
            {"ss_base_model_version": "sdxl_base_v1-0", "ss_sd_model_name": "x.ckpt"},
            "note",
            "the file names sdxl_base_v1-0 (ss_base_model_version), x.ckpt (ss_sd_model_name); {} would be flux1",
        ),
        ({"ss_base_model_version": ""}, "note", "the file names none"),
    ],
)
def test_the_base_that_a_header_names_is_compared(base, tmp_path, header, level, text):
    found, _ = of_one(write(tmp_path, plain(), header), base)
    assert found["base"] == (level, text.format(base))


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ('{"base_model_name_or_path": "someone/model", "lora_alpha": 2}', "someone/model (adapter_config.json)"),
        ('{"base_model_name_or_path": null, "lora_alpha": 2}', "the file names none"),
        ("[]", "the file names none"),
        ("{", "the file names none"),
    ],
)
def test_the_base_that_pefts_configuration_names_is_shown(base, tmp_path, config, text):
    file = write(tmp_path, plain())
    (tmp_path / "adapter_config.json").write_text(config)
    assert text in of_one(file, base)[0]["base"][1]


def test_a_file_that_is_no_safetensors_is_one_finding(base, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"PK")
    report, found = check(tmp_path / "x.safetensors", base)
    assert said(found, "file", "x.safetensors")[0] == "FAIL" and len(report.findings) == 1
    assert "x.safetensors is no safetensors file" in report.reason


@pytest.mark.parametrize(
    ("path", "base", "message"),
    [
        ("nowhere", None, "nowhere is missing"),
        ("empty", "empty", "empty holds no .safetensors file"),
        ("x.safetensors", "nowhere", "the base model nowhere is not here: go to the project's root, or name it with"),
        ("x.safetensors", "empty", "model_index.json"),
    ],
)
def test_what_cannot_be_looked_at_is_refused(tmp_path, monkeypatch, path, base, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write(tmp_path, plain())
    refused = CliRunner().invoke(main, ["check", path, *(("--base", base) if base else ())])
    assert refused.exit_code == 1 and message in refused.output and refused.output.count("\n") == 1


def test_the_families_have_layers_and_the_shipped_teacher_names_among_them():
    known = likeness.families()
    assert known.keys() == {"flux", "qwen_image", "z_image"}
    backbone = backbones.load(ROOT / "artifacts" / "teacher", "cpu", ())
    assert adapters.linear_shapes(backbone.skeleton()).keys() <= known["flux"].layers.keys()


def glance(*arguments, code=0):
    done = CliRunner().invoke(main, ["check", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr


def test_the_command_prints_a_line_per_finding(pair):
    report, _ = check(pair.bundle.folder)
    printed, complained = glance(pair.bundle.folder)
    lines = [line for line in printed.splitlines() if not line.endswith("safetensors:")]
    assert lines == [f"{one.level:4} {one.name}: {one.text}" for one in report.findings] and complained == ""
    assert "fast.safetensors:\nok   layout: diffusers, as " in printed


def test_the_command_prints_the_same_as_json(pair, tmp_path):
    report, _ = check(pair.bundle.folder)
    printed, _ = glance(pair.bundle.folder, "--json")
    content = json.loads(printed)
    assert content["usable"] is True and content["reason"] is None
    assert [tuple(one.values()) for one in content["findings"]] == [
        (one.name, one.level, one.text, one.file) for one in report.findings
    ]


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_the_command_ends_with_1_and_the_reason(base, tmp_path, options):
    file = write(tmp_path, plain(b=torch.zeros(32, 2)))
    printed, complained = glance(file, "--base", base, *options, code=1)
    reason = "float32; the file changes nothing: A or B is 0 in every layer"
    assert complained == f"Error: {file} cannot be used: {reason}\n"
    if options:
        assert json.loads(printed)["usable"] is False and json.loads(printed)["reason"] == reason
    else:
        assert f"FAIL numbers: {reason}\n" in printed


def test_the_command_takes_the_teacher_of_params_yaml(pair, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = shutil.copy(pair.bundle.files["slow"], tmp_path / "x.safetensors")
    assert "--base must name the base model's folder where no params.yaml is" in glance(file, code=1)[1]
    text = (ROOT / "params.yaml").read_text().replace("path: artifacts/teacher ", f"path: {base} ")
    (tmp_path / "params.yaml").write_text(text)
    assert f"linear layers of {base}" in glance(file)[0]


def test_the_command_takes_a_bundle_from_anywhere(pair, tmp_path, monkeypatch):
    bundle = replace(pair.bundle, base_model="artifacts/teacher")
    folder = shutil.copytree(pair.bundle.folder, tmp_path / "bundle")
    bundle.write_manifest(folder)
    monkeypatch.chdir(tmp_path)
    assert "the base model artifacts/teacher is not here" in glance("bundle", code=1)[1]
    printed, _ = glance("bundle", "--base", pair.recorded.teacher)
    assert "note contract: the header and glance.json differ in base_model; glance.json counts" in printed


def test_an_export_of_kohya_is_a_folder_of_lora_files(pair, base, tmp_path):
    export("kohya", pair.bundle.folder, tmp_path / "out")
    report, found = check(tmp_path / "out", base)
    assert report.reason is None and len({one.file for one in report.findings}) == 2
    for file in (tmp_path / "out").glob("*.safetensors"):
        phase = file.stem.rpartition("-")[2]
        assert said(found, "contract", file.name) == ("ok", f"the file is the phase {phase} of slow, fast")


@pytest.mark.parametrize("name", ["adapter_config.json", "README.md"])
def test_a_bundle_without_one_of_its_files_is_no_folder_of_lora_files(folder, name):
    (folder / name).unlink()
    report, _ = check(folder)
    assert report.reason == f"{folder} is no bundle: {name} is missing"


@pytest.mark.parametrize("whole", [True, False])
def test_a_bundle_in_one_file_is_checked_as_the_folder_that_it_makes(pair, base, tmp_path, whole):
    (file,) = export("one-file", pair.bundle.folder, tmp_path / "out")
    report, found = check(file if whole else file.parent)
    expected, _ = check(pair.bundle.folder)
    assert report.findings[1:] == expected.findings and report.base == base and report.reason is None
    assert report.path == (file if whole else file.parent)
    assert said(found, "file", file.name) == ("ok", f"it holds a whole bundle: `glance import {file}` makes the folder")


def test_a_bundle_in_one_file_for_another_base_names_no_place_of_the_check(pair, tmp_path):
    (file,) = export("one-file", pair.bundle.folder, tmp_path / "out")
    report, found = check(file, make_tiny_qwen_image(tmp_path / "other"))
    assert found[None, "digest"].level == "FAIL"
    use = said(found, "use", "slow.safetensors")
    assert use[0] == "FAIL" and use[1].startswith("slow.safetensors ")


@pytest.mark.parametrize("change", [{"format": 2}, {"digest": "sha256:0"}])
def test_a_damaged_bundle_in_one_file_is_one_failure(pair, tmp_path, change):
    (file,) = export("one-file", pair.bundle.folder, tmp_path / "out")
    with safe_open(file, framework="pt") as opened:
        content = json.loads(opened.metadata()[one_file.HEADER])
    save_file(load_file(file), file, {one_file.HEADER: json.dumps(content | change)})
    report, _ = check(file)
    assert len(report.findings) == 1 and report.reason.startswith(str(file))
