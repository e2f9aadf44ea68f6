"""Formats of a bundle for other tools: what stock diffusers loads of them, and a bundle that stays as it was."""

import re
import resource
import shutil
import stat
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import DiffusionPipeline, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from pipeline import adapters, backbones, cli
from pipeline.artifacts import file_digest, files, folder_digest, read_json, write_json
from pipeline.bundle import importing
from pipeline.bundle.formats import FORMATS, export, fused
from pipeline.bundle.generating import generate
from pipeline.bundle.manifest import bundle_digest
from tests.pairs import PROMPTS, SEEDS, difference, make_pair, pixels, stock, stock_images
from tests.recorded import ROOT, small_params
from tests.tiny import make_tiny_flux, make_tiny_qwen_image, make_tiny_z_image

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
FUSED_FILES = [
    "fast/transformer/config.json",
    f"fast/{WEIGHTS}",
    "glance.json",
    "slow/transformer/config.json",
    f"slow/{WEIGHTS}",
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def out(pair, tmp_path_factory):
    """The pair in the format `fused`."""
    folder = tmp_path_factory.mktemp("formats") / "fused"
    export("fused", pair.bundle.folder, folder)
    return folder


@pytest.fixture
def project(pair, tmp_path, monkeypatch):
    """A folder with the bundle where the commands look for it, as the working directory."""
    shutil.copytree(pair.bundle.folder, tmp_path / "artifacts/bundle")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def glance(*arguments, code=0):
    """Runs `glance export`; what it prints and what it complains about."""
    done = CliRunner().invoke(cli.main, ["export", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr.strip()


def refused(*arguments):
    """The one sentence of a command that must fail."""
    printed, said = glance(*arguments, code=1)
    assert printed == "" and said.startswith("Error: ") and "\n" not in said
    return said.removeprefix("Error: ")


def everything(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*"))


def forward(transformer):
    """One forward of a tiny FLUX.1 transformer on fixed inputs, shape (2, 16, 32)."""
    generator = torch.Generator().manual_seed(0)
    x, states, pooled = (torch.randn(shape, generator=generator) for shape in ((2, 16, 32), (2, 5, 24), (2, 16)))
    ids = FluxPipeline._prepare_latent_image_ids(2, 4, 4, "cpu", torch.float32)
    with torch.no_grad():
        return transformer(
            hidden_states=x,
            encoder_hidden_states=states,
            pooled_projections=pooled,
            timestep=torch.tensor([0.9, 0.3]),
            img_ids=ids,
            txt_ids=torch.zeros(5, 3),
            return_dict=False,
        )[0]


def test_the_table_is_keyed_by_the_names_of_its_formats():
    assert {name: one.name for name, one in FORMATS.items()} == {name: name for name in FORMATS}
    assert all(one.description for one in FORMATS.values())


@pytest.mark.parametrize("phase", ["slow", "fast"])
def test_stock_diffusers_loads_a_phase_as_the_base_with_its_active_adapter(pair, out, phase):
    transformer = FluxTransformer2DModel.from_pretrained(out / phase / "transformer")
    pipe = stock(pair.recorded, pair.bundle.folder)
    pipe.set_adapters(phase)
    velocity = forward(transformer)
    torch.testing.assert_close(velocity, forward(pipe.transformer), rtol=1e-4, atol=1e-4)
    for other in ("slow", "fast", None):
        if other != phase:
            pipe.set_adapters(other) if other else pipe.transformer.disable_adapters()
            assert (velocity - forward(pipe.transformer)).abs().max() > 0.1, f"not as with {other}"


def test_a_stock_pipeline_that_changes_its_transformer_makes_the_images_of_generate(pair, out):
    phases = {phase: FluxTransformer2DModel.from_pretrained(out / phase / "transformer") for phase in ("slow", "fast")}
    pipe = FluxPipeline.from_pretrained(pair.recorded.teacher)
    pipe.set_progress_bar_config(disable=True)
    images = stock_images(pipe, pair.bundle, lambda pipe, phase: setattr(pipe, "transformer", phases[phase]))
    ours = generate(pair.recorded.backbone(backbones.PARTS), pair.bundle, PROMPTS, SEEDS)
    assert difference(ours, pixels(images)) <= 1


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_weight_is_summed_in_float32_and_rounded_once(pair, tmp_path, dtype):
    bundle = pair.written(tmp_path / "bundle", teacher=replace(pair.recorded.params.teacher, dtype=dtype))
    export("fused", bundle.folder, tmp_path / "out")
    kind = bundle.base().torch_dtype
    base = load_file(pair.recorded.teacher / WEIGHTS)
    for phase, state in bundle.states().items():
        weights = load_file(tmp_path / "out" / phase / WEIGHTS)
        assert weights.keys() == base.keys() and {weight.dtype for weight in weights.values()} == {kind}
        changed = {f"{module}.weight" for module in adapters.adapted(state)}
        for name, weight in weights.items():
            full = base[name].to(kind)
            if name in changed:
                full = (full.float() + adapters.delta(state, name.removesuffix(".weight"))).to(kind)
            assert torch.equal(weight, full), name


@pytest.mark.parametrize(
    ("make", "module"),
    [
        (make_tiny_flux, "single_transformer_blocks.0.attn.to_q"),
        (make_tiny_qwen_image, "transformer_blocks.0.attn.to_k"),
        (make_tiny_z_image, "layers.0.attention.to_v"),
    ],
)
def test_the_class_of_each_family_loads_its_transformer(tmp_path, make, module):
    teacher = make(tmp_path / "teacher")
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 32, generator=generator), torch.randn(32, 2, generator=generator)
    keys = {f"transformer.{module}.lora_A.weight": a, f"transformer.{module}.lora_B.weight": b}
    save_file(keys, tmp_path / "pair.safetensors")
    pair = dict.fromkeys(("slow", "fast"), tmp_path / "pair.safetensors")
    importing.bundle(pair, small_params(teacher), tmp_path / "bundle", "uniform", {"slow": 2, "fast": 2})
    export("fused", tmp_path / "bundle", tmp_path / "out")
    base = DiffusionPipeline.from_pretrained(teacher).transformer
    fast = type(base).from_pretrained(tmp_path / "out/fast/transformer")
    base.get_submodule(module).weight.data += b @ a
    expected, got = base.state_dict(), fast.state_dict()
    assert got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in got)


def test_the_lines_of_the_page_make_the_image_of_generate(pair, project, out):
    """The lines of docs/pairs.md, on a teacher without embedded guidance as the shipped one."""
    section = (ROOT / "docs/pairs.md").read_text(encoding="utf-8").partition("## Export")[2].partition("\n## ")[0]
    (lines,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    shutil.copytree(out, "fused-pair")
    shutil.copytree(pair.recorded.teacher, "artifacts/teacher")
    scope = {}
    exec(lines, scope)
    ours = generate(pair.recorded.backbone(backbones.PARTS), pair.bundle, ["a red star"], [7])
    assert difference(ours[0], np.asarray(scope["image"])) <= 1


def test_the_folder_has_the_files_that_are_named_for_everyone_to_read(pair, tmp_path):
    written = export("fused", pair.bundle.folder, tmp_path / "out")
    assert [file.relative_to(tmp_path / "out").as_posix() for file in written] == FUSED_FILES
    assert files(tmp_path / "out") == FUSED_FILES and everything(tmp_path)[0] == "out"
    assert all(file.stat().st_mode & stat.S_IRGRP for file in written)
    assert (tmp_path / "out/glance.json").read_bytes() == (pair.bundle.folder / "glance.json").read_bytes()
    config = pair.recorded.teacher / "transformer/config.json"
    assert (tmp_path / "out/slow/transformer/config.json").read_bytes() == config.read_bytes()


@pytest.mark.parametrize("number", [1, 2])
def test_a_bundle_of_an_earlier_format_is_exported_with_the_contract_of_today(pair, tmp_path, number):
    older = shutil.copytree(pair.bundle.folder, tmp_path / "older")
    content = read_json(older / "glance.json")
    today = deepcopy(content)
    for key in ("sigmas", "license", "scale", "retention", "handoffs"):
        del content[key]
    content |= {"format": number}
    if number == 1:
        content["phases"] = {phase.pop("name"): phase for phase in content["phases"]}
        content["handoff"] = today["handoffs"][0]
    write_json(older / "glance.json", content)
    export("fused", older, tmp_path / "out")
    assert read_json(tmp_path / "out/glance.json") == today


def test_the_same_bundle_gives_the_same_bytes_and_stays_as_it_was(pair, out, tmp_path):
    bundle, teacher = bundle_digest(pair.bundle.folder), folder_digest(pair.recorded.teacher)
    export("fused", pair.bundle.folder, tmp_path / "out")
    assert folder_digest(tmp_path / "out") == folder_digest(out)
    assert (bundle_digest(pair.bundle.folder), folder_digest(pair.recorded.teacher)) == (bundle, teacher)


def test_a_large_transformer_is_split_into_files_that_stock_diffusers_loads(pair, out, tmp_path, monkeypatch):
    monkeypatch.setattr(fused, "SHARD", "50KB")
    written = export("fused", pair.bundle.folder, tmp_path / "out")
    place = tmp_path / "out/slow/transformer"
    index = read_json(place / "diffusion_pytorch_model.safetensors.index.json")
    shards = {path.name for path in written if path.parent == place and path.suffix == ".safetensors"}
    assert len(shards) > 2 and set(index["weight_map"].values()) == shards
    whole = FluxTransformer2DModel.from_pretrained(out / "slow/transformer").state_dict()
    split = FluxTransformer2DModel.from_pretrained(place).state_dict()
    assert whole.keys() == split.keys() and all(torch.equal(whole[name], split[name]) for name in whole)


def test_the_command_writes_a_format_beside_the_bundle(pair, project, out):
    digest = bundle_digest("artifacts/bundle")
    printed, _ = glance("--format", "fused", "there/fused")
    assert printed.splitlines() == [f"there/fused/{name}" for name in FUSED_FILES]
    assert folder_digest("there/fused") == folder_digest(out)
    assert bundle_digest("artifacts/bundle") == digest


def test_the_command_takes_a_bundle_and_a_base_from_anywhere(pair, project, out, monkeypatch):
    shutil.move("artifacts/bundle", "pair")
    moved = shutil.copytree(pair.recorded.teacher, project / "elsewhere")
    glance("--format", "fused", "--bundle", "pair", "--teacher", moved, "out")
    assert folder_digest("out") == folder_digest(out)


def test_the_help_shows_the_table():
    printed, _ = glance("--help")
    table = " ".join(printed.partition("Formats:")[2].split())
    assert all(f"{one.name} {one.description}" in table for one in FORMATS.values())


def test_an_unknown_format_is_refused_with_the_nearest_name(project):
    known = ", ".join(FORMATS)
    message = f"--format must be one of {known}, got 'fusde'; did you mean fused?"
    assert refused("--format", "fusde", "out") == message
    assert refused("--format", "x", "out") == f"--format must be one of {known}, got 'x'"
    assert "Missing option '--format'" in glance("out", code=2)[1]


def test_a_picture_of_a_format_without_one_is_refused(project):
    for name, one in FORMATS.items():
        if one.illustrate is None:
            said = refused("--format", name, "--no-picture", "out")
            assert said == f"--no-picture is for formats with a sample picture, got {name}"
    assert not Path("out").exists()


def test_a_place_that_is_taken_or_belongs_to_a_digest_is_refused(pair, project):
    Path("taken").mkdir()
    for out, message in (
        ("taken", "OUT must not be there yet, got taken"),
        ("artifacts/bundle/out", "OUT must lie outside of artifacts/bundle, whose digest covers every file in it, got"),
        (pair.recorded.teacher / "out", f"OUT must lie outside of {pair.recorded.teacher}, whose digest covers"),
    ):
        before = everything(project), everything(pair.recorded.teacher)
        assert refused("--format", "fused", out).startswith(message)
        assert (everything(project), everything(pair.recorded.teacher)) == before


def test_a_base_that_is_missing_or_another_one_is_refused(project, tmp_path_factory):
    other = make_tiny_flux(tmp_path_factory.mktemp("other") / "teacher", seed=1)
    for base, message in (
        ("nowhere", "the base model nowhere is not here: go to the project's root, or name it with --teacher"),
        (other, f"artifacts/bundle was made for another model than {other}: sha256:"),
    ):
        assert refused("--format", "fused", "--teacher", base, "out").startswith(message)
        assert not Path("out").exists()


def test_a_folder_that_is_no_bundle_is_refused(project):
    Path("artifacts/bundle/slow.safetensors").unlink()
    assert refused("--format", "fused", "out") == "artifacts/bundle is no bundle: slow.safetensors is missing"
    assert "nowhere is no bundle" in refused("--format", "fused", "--bundle", "nowhere", "out")


def test_an_adapter_that_the_base_has_no_place_for_leaves_nothing(project):
    file = Path("artifacts/bundle/fast.safetensors")
    tensors = load_file(file)
    save_file({re.sub("^transformer.proj_out", "transformer.nowhere", key): tensors[key] for key in tensors}, file)
    before = everything(project)
    message = refused("--format", "fused", "out")
    assert message == "adapter fast changes nowhere, which the transformer does not have"
    assert everything(project) == before, "the slow phase was written already, into a folder that is gone"


def test_a_full_disk_is_one_sentence_and_leaves_nothing(project, out):
    before, digest = everything(project), file_digest("artifacts/bundle/slow.safetensors")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((out / "slow" / WEIGHTS).stat().st_size - 1, hard))
    try:
        message = refused("--format", "fused", "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert message.startswith("no space left to write at ")
    assert everything(project) == before and file_digest("artifacts/bundle/slow.safetensors") == digest
