"""The formats `kohya` and `one-file`: the files mean the same changes, to this project and to diffusers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from diffusers import FluxPipeline, FluxTransformer2DModel, QwenImagePipeline, ZImagePipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline import adapters, backbones, cli
from pipeline.adapters import lora_files
from pipeline.adapters.lora_names import Target
from pipeline.artifacts import folder_digest, read_json, write_json
from pipeline.bundle import importing
from pipeline.bundle.formats import export, kohya, one_file
from pipeline.bundle.formats.stacking import authors_names, stacked_pair
from pipeline.bundle.manifest import Bundle, bundle_digest
from pipeline.families.flux import FluxBackbone
from tests.exported import MAKERS, PHASES, make_bundles, random_state, shapes_of
from tests.lora_layouts import AUTHORS, FAMILIES, build
from tests.recorded import small_params

LOADERS = {"flux": FluxPipeline, "qwen_image": QwenImagePipeline, "z_image": ZImagePipeline}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    return make_bundles(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def project(bundles, tmp_path, monkeypatch):
    """A folder with the FLUX.1 bundle where the commands look for it, as the working directory."""
    shutil.copytree(bundles["flux"].folder, tmp_path / "artifacts/bundle")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_same_changes(state, expected, tolerance=1e-6):
    """Equal up to a share of the largest entry, layer by layer; large layers by their action on three vectors."""
    assert adapters.adapted(state) == adapters.adapted(expected)
    generator = torch.Generator().manual_seed(0)
    for layer in adapters.adapted(expected):
        a, b = (expected[f"{layer}.lora_{side}.weight"].double() for side in "AB")
        own_a, own_b = (state[f"{layer}.lora_{side}.weight"].double() for side in "AB")
        x = torch.randn(a.shape[1], 3, generator=generator, dtype=torch.float64)
        y = b @ (a @ x)
        assert (own_b @ (own_a @ x) - y).abs().max() <= tolerance * y.abs().max(), layer


def refused(*arguments):
    """The one sentence of a command that must fail."""
    done = CliRunner().invoke(cli.main, list(map(str, arguments)))
    assert done.exit_code == 1 and done.stdout == "", done.output
    said = done.stderr.strip()
    assert said.startswith("Error: ") and "\n" not in said
    return said.removeprefix("Error: ")


@pytest.mark.parametrize("family", MAKERS)
def test_the_files_of_kohya_come_back_as_the_same_changes(bundles, tmp_path, family):
    bundle = bundles[family]
    files = export("kohya", bundle.folder, tmp_path / "out")
    backbone = backbones.load(bundle.base_model, "cpu", parts=())
    named = {file.stem.rpartition("-")[2]: file for file in files if file.suffix == ".safetensors"}
    assert named.keys() == PHASES.keys()
    for phase, state in bundle.states().items():
        tensors = load_file(named[phase])
        assert all(key.startswith("lora_unet_") for key in tensors)
        for key, down in tensors.items():
            if key.endswith(".lora_down.weight"):
                assert tensors[key.replace(".lora_down.weight", ".alpha")] == len(down)
        assert_same_changes(lora_files.read(named[phase], backbone), state)
        if family != "flux":  # whose converter is written for one width, see below
            assert_same_changes(through_diffusers(family, tensors), state)


def through_diffusers(family, tensors):
    """What the stock loader makes of a file; it forgets the prefix of FLUX.1's layers outside of the blocks."""
    loaded = LOADERS[family].lora_state_dict(dict(tensors))
    return {key.removeprefix("transformer."): tensor for key, tensor in loaded.items()}


@pytest.fixture(scope="module")
def published_shapes():
    """Of the layers of FLUX.1-dev with one block of each kind."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    return adapters.linear_shapes(transformer)


@pytest.mark.parametrize("rank", [2, 4])
def test_diffusers_reads_the_same_changes_of_flux_at_its_published_width(published_shapes, rank):
    state = random_state(published_shapes, rank=rank)
    names = authors_names(published_shapes, FluxBackbone.lora_names)
    assert_same_changes(through_diffusers("flux", kohya.tensors(state, names, published_shapes)), state)


@pytest.mark.parametrize("kept", [["attn.to_q"], ["attn.to_k", "proj_mlp"], ["attn.to_v", "attn.add_k_proj"]])
def test_a_part_of_a_fused_matrix_without_a_change_is_zero(published_shapes, kept):
    shapes = {layer: shape for layer, shape in published_shapes.items() if layer.endswith(tuple(kept))}
    state, names = random_state(shapes, rank=3), authors_names(published_shapes, FluxBackbone.lora_names)
    loaded = through_diffusers("flux", kohya.tensors(state, names, published_shapes))
    others = {key for key in loaded if key.rpartition(".lora_")[0] not in shapes}
    assert others and not any(loaded[key].count_nonzero() for key in others if ".lora_B." in key)
    assert_same_changes({key: tensor for key, tensor in loaded.items() if key not in others}, state)


def test_the_authors_names_are_those_that_trainers_write(bundles):
    """The table of the readers' tests was written by hand."""
    for family, hand in AUTHORS.items():
        names = authors_names(shapes_of(bundles[family].base_model), FAMILIES[family].lora_names)
        found = {name: list(target.layers) for name, target in names.items()}
        assert {name: found[name] for name in hand} == hand
        if family == "flux":
            assert found == hand
            assert [name for name, one in names.items() if one.halves_swapped] == ["final_layer.adaLN_modulation.1"]


def test_every_layer_is_in_one_matrix(bundles):
    for family, bundle in bundles.items():
        shapes = shapes_of(bundle.base_model)
        names = authors_names(shapes, FAMILIES[family].lora_names)
        assert sorted(layer for target in names.values() for layer in target.layers) == sorted(shapes)


def test_ranks_add_up_unless_layers_share_their_a():
    shapes = {"q": (4, 3), "k": (5, 3), "v": (6, 3)}
    state, target = random_state(shapes), Target(tuple(shapes))
    whole = torch.cat([adapters.delta(state, layer) for layer in shapes])
    a, b = stacked_pair(state, target, shapes)
    assert a.shape == (6, 3) and b.shape == (15, 6)
    torch.testing.assert_close(b @ a, whole)
    state["k.lora_A.weight"] = state["v.lora_A.weight"] = state["q.lora_A.weight"]
    a, b = stacked_pair(state, target, shapes)
    assert torch.equal(a, state["q.lora_A.weight"])
    torch.testing.assert_close(b @ a, torch.cat([adapters.delta(state, layer) for layer in shapes]))


def test_a_file_of_a_trainer_that_shares_a_comes_out_with_its_own_rank(bundles, tmp_path):
    bundle = bundles["flux"]
    made = build("kohya", "flux", shapes_of(bundle.base_model))
    pair = dict.fromkeys(PHASES, made.write(tmp_path))
    imported = importing.bundle(pair, small_params(Path(bundle.base_model)), tmp_path / "bundle", "uniform", PHASES)
    _, slow, _ = export("kohya", imported.folder, tmp_path / "out")
    ranks = {len(tensor) for key, tensor in load_file(slow).items() if key.endswith("down.weight")}
    assert ranks == {imported.rank}
    with safe_open(slow, framework="pt") as opened:
        said = opened.metadata()
    assert said["ss_network_dim"] == said["ss_network_alpha"] == str(imported.rank)


def test_the_header_says_what_trainers_say_and_carries_the_manifest(bundles, tmp_path):
    manifest, *files = export("kohya", bundles["flux"].folder, tmp_path / "out")
    digest = bundle_digest(bundles["flux"].folder).removeprefix("sha256:")
    assert [file.name for file in files] == [f"glance-{digest[:8]}-{phase}.safetensors" for phase in PHASES]
    assert manifest.read_bytes() == (bundles["flux"].folder / "glance.json").read_bytes()
    for file, phase in zip(files, PHASES, strict=True):
        with safe_open(file, framework="pt") as opened:
            said = opened.metadata()
        assert json.loads(said.pop("glance")) == read_json(manifest) | {"phase": phase}
        assert said == {
            "format": "pt",
            "ss_base_model_version": "flux1",
            "ss_network_alpha": "Dynamic",
            "ss_network_dim": "Dynamic",
            "ss_network_module": "networks.lora_flux",
        }


def test_modules_that_a_tool_passes_over_are_named(bundles, tmp_path, caplog, published_shapes):
    export("kohya", bundles["flux"].folder, tmp_path / "all")
    outside = sorted(name for name in AUTHORS["flux"] if not name.startswith(("double_blocks", "single_blocks")))
    final = [name for name in outside if name.startswith("final_layer")]
    assert caplog.messages == [
        f"sd-scripts passes over these modules of the files: {', '.join(final)}",
        f"diffusers passes over these modules of the files: {', '.join(outside)}",
    ]
    names = authors_names(published_shapes, FluxBackbone.lora_names)
    tensors = kohya.tensors(random_state(published_shapes), names, published_shapes)
    lost = {key for key in FluxPipeline.lora_state_dict(tensors) if not key.startswith("transformer.")}
    assert {key.partition(".lora_")[0] for key in lost} == {names[name].layers[0] for name in outside}
    caplog.clear()
    export("kohya", bundles["qwen_image"].folder, tmp_path / "qwen")
    assert not caplog.messages


def test_a_family_without_a_known_trainer_is_refused(bundles, tmp_path):
    other = replace(bundles["flux"], family="flux2")
    with pytest.raises(ValueError, match="--format kohya is for flux, qwen_image, z_image, .* known for flux2"):
        kohya.write(other, tmp_path)


def test_a_change_of_a_layer_that_the_base_lacks_is_refused(project):
    file = Path("artifacts/bundle/fast.safetensors")
    tensors = load_file(file)
    save_file({key.replace("transformer.proj_out", "transformer.nowhere"): tensors[key] for key in tensors}, file)
    said = refused("export", "--format", "kohya", "out")
    assert said == "adapter fast changes nowhere, which the transformer does not have"
    assert not Path("out").exists()


@pytest.mark.parametrize("name", ["kohya", "one-file"])
def test_the_same_bundle_gives_the_same_bytes(bundles, tmp_path, name):
    folders = [tmp_path / str(i) for i in range(4)]
    for folder in folders:
        export(name, bundles["flux"].folder, folder)
    assert len({folder_digest(folder) for folder in folders}) == 1


@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_file_gives_the_same_bundle_again(bundles, tmp_path, monkeypatch, count):
    teacher = Path(bundles["qwen_image"].base_model)
    file = tmp_path / "x.safetensors"
    save_file({f"transformer.{key}": one for key, one in random_state(shapes_of(teacher)).items()}, file)
    steps = {f"expert_{i}": 2 for i in range(count)}
    rule = "uniform"
    bundle = importing.bundle(dict.fromkeys(steps, file), small_params(teacher), tmp_path / "bundle", rule, steps)
    (one,) = export("one-file", bundle.folder, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.main, ["import", str(one), "--out", "again"])
    assert done.exit_code == 0 and done.stdout == f"again: {2 * count} steps, rank 2\n", done.output
    assert bundle_digest("again") == bundle_digest(bundle.folder)
    assert replace(Bundle.load("again"), folder=bundle.folder) == bundle


def test_one_file_holds_each_phase_under_its_name(bundles, tmp_path):
    bundle = bundles["flux"]
    (file,) = export("one-file", bundle.folder, tmp_path / "out")
    tensors = load_file(file)
    for phase, path in bundle.files.items():
        for key, tensor in load_file(path).items():
            assert torch.equal(tensors.pop(f"{phase}.{key}"), tensor)
    assert not tensors
    content = one_file.content_of(file)
    assert json.loads(content.texts["glance.json"]) == read_json(bundle.folder / "glance.json")
    assert one_file.content_of(bundle.folder / "slow.safetensors") is None
    assert one_file.content_of(tmp_path / "nowhere.safetensors") is None


@pytest.fixture
def one(project):
    (file,) = export("one-file", Path("artifacts/bundle"), Path("one"))
    return file


def rewritten(file, change):
    """The file with another header."""
    with safe_open(file, framework="pt") as opened:
        content = json.loads(opened.metadata()[one_file.HEADER])
    save_file(load_file(file), file, {one_file.HEADER: json.dumps(change(content))})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content | {"format": 2}, "in the header is no bundle (its format must be 1, got 2)"),
        (lambda content: {"format": 1}, "in the header is no bundle ('digest')"),
        (lambda content: content | {"texts": {"../x.json": ""}}, "must hold JSON and Markdown files alone, got '../"),
        (
            lambda content: content | {"headers": {"../x": ""}},
            "must name phases as files are named, got '../",
        ),
        (lambda content: content | {"headers": {"slow": "{}", "third": '{"a": {}}'}}, "the header of phase third "),
        (lambda content: content | {"headers": {"slow": "["}}, "the header of phase slow does not fit its tensors ("),
        (lambda content: content | {"digest": "sha256:0"}, "is damaged: its bundle must have the digest sha256:0"),
    ],
)
def test_a_header_that_is_no_bundles_is_refused(one, change, message):
    rewritten(one, change)
    said = refused("import", one, "--out", "again")
    assert said.startswith(f"{one}") and message in said
    assert not Path("again").exists() and not list(Path().glob(".again*"))


def test_a_whole_bundle_among_other_files_is_refused(one):
    said = refused("import", one, "artifacts/bundle/fast.safetensors", "--out", "again")
    assert said == f"{one} holds a whole bundle: import it alone"


def test_a_place_inside_a_bundle_is_refused(one):
    before = bundle_digest("artifacts/bundle")
    for files in ([one], ["artifacts/bundle/slow.safetensors", "artifacts/bundle/fast.safetensors"]):
        said = refused("import", *files, "--out", "artifacts/bundle/again")
        assert said.startswith("--out must lie outside of the bundle ")
        assert refused("import", *files, "--out", "artifacts/bundle").startswith("--out must not be there yet")
    assert bundle_digest("artifacts/bundle") == before


def test_a_tensor_with_another_bit_is_refused(one):
    raw = bytearray(one.read_bytes())
    raw[-1] ^= 1
    one.write_bytes(raw)
    assert "is damaged: its bundle must have the digest sha256:" in refused("import", one, "--out", "again")


def test_what_a_bundle_says_itself_is_not_asked_for(one):
    for option, value in (("--strength", 1.0), ("--slow-steps", 2), ("--levels", "1,0.5"), ("--path", "consistent")):
        said = refused("import", one, option, value)
        assert said == f"{option} is for LoRA files, and {one} holds a whole bundle: leave it out"
    assert refused("import", one, "--out", "one") == "--out must not be there yet, got one"


def test_a_file_without_a_bundle_is_refused(bundles, tmp_path):
    file = bundles["flux"].folder / "slow.safetensors"
    with pytest.raises(ValueError, match="slow.safetensors has no bundle in its header, which `glance export"):
        one_file.restore(file, tmp_path / "out")


@pytest.mark.parametrize(("name", "data"), [("notes.md", b"\xff"), ("notes.txt", b"a"), ("deep/notes.md", b"a")])
def test_a_file_that_no_header_can_hold_is_refused(project, name, data):
    path = Path("artifacts/bundle", name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    said = refused("export", "--format", "one-file", "out")
    assert said == f"--format one-file takes adapters, JSON and Markdown in UTF-8, got artifacts/bundle/{name}"


def test_further_texts_of_a_bundle_travel_with_it(project):
    write_json("artifacts/bundle/notes.json", {"a": 1})
    (file,) = export("one-file", Path("artifacts/bundle"), Path("one"))
    one_file.restore(file, Path("again"))
    assert bundle_digest("again") == bundle_digest("artifacts/bundle")
