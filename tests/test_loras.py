"""LoRAs that are part of a teacher: parsed, fetched, fused as stock diffusers fuses them, and pinned by a bundle."""

import re
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from diffusers import DiffusionPipeline
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RemoteEntryNotFoundError, RevisionNotFoundError
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline import adapters, artifacts, backbones, diagnosis, params, styles
from pipeline.adapters import switching
from pipeline.backbones import hub, quantization
from pipeline.backbones.teacher import Teacher
from pipeline.bundle import generating
from pipeline.bundle.formats import export
from pipeline.bundle.manifest import Bundle
from pipeline.bundle.write import bundle as write_bundle
from pipeline.cli import main
from pipeline.partition import PHASES, compute
from pipeline.styles import Lora, RivalFile
from tests.recorded import ROOT, small_params
from tests.test_rival_params import LIGHTNING
from tests.tiny import make_tiny_flux, make_tiny_qwen_image, make_tiny_z_image

MODULE = {
    "flux": "single_transformer_blocks.0.attn.to_q",
    "qwen_image": "transformer_blocks.0.attn.to_k",
    "z_image": "layers.0.attention.to_v",
}
HUB = "someone/shade@main/deep/shade.safetensors"


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    makers = {"flux": make_tiny_flux, "qwen_image": make_tiny_qwen_image, "z_image": make_tiny_z_image}
    return {family: make(folder / family) for family, make in makers.items()}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(file, module, rank=2, seed=0, alpha=None, shape=(32, 32)):
    """A LoRA of one module under loras/, and its delta; with an alpha in the keys of kohya, else in diffusers'."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, shape[1], generator=generator)
    b = torch.randn(shape[0], rank, generator=generator)
    keys = f"transformer.{module}.lora_A.weight", f"transformer.{module}.lora_B.weight"
    extra = {}
    if alpha is not None:
        name = f"lora_unet_{module.replace('.', '_')}"
        keys, extra = (f"{name}.lora_down.weight", f"{name}.lora_up.weight"), {f"{name}.alpha": torch.tensor(alpha)}
    path = styles.FOLDER / file
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({keys[0]: a, keys[1]: b, **extra}, path)
    return (1 if alpha is None else alpha / rank) * b @ a


def load(path, *chosen, **how):
    """A teacher's transformer with LoRAs fused into it."""
    return backbones.load(Teacher(path=path, loras=chosen, **how), "cpu", ("transformer",))


def weights(transformer):
    return {name: weight.detach().clone() for name, weight in transformer.state_dict().items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", Lora("a.safetensors", 1.0)),
        ("my styles/b.safetensors:-0.5", Lora("my styles/b.safetensors", -0.5)),
        (f"{HUB}:.8", Lora(HUB, 0.8)),
    ],
)
def test_an_entry_is_a_file_and_a_weight(text, expected):
    assert styles.parse(text) == expected and expected.path == Path("loras") / expected.file


def test_an_entry_of_the_hub_names_repository_revision_and_file():
    assert Lora(HUB).hub.groupdict() == {
        "repository": "someone/shade", "revision": "main", "filename": "deep/shade.safetensors"
    }  # fmt: skip
    assert Lora("someone/shade/x.safetensors").hub is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a.safetensors", "teacher.loras must be a list of texts, got 'a.safetensors'"),
        ([1], "teacher.loras must be a list of texts, got [1]"),
        (["a.bin"], "teacher.loras must hold FILE.safetensors or FILE.safetensors:WEIGHT with files under loras/, got"),
        (["/a.safetensors"], "with files under loras/"),
        (["../a.safetensors"], "with files under loras/"),
        (["a.safetensors:strong"], "WEIGHT a finite number, got 'a.safetensors:strong'"),
        (["a.safetensors:nan"], "WEIGHT a finite number, got 'a.safetensors:nan'"),
        (["a.safetensors:"], "WEIGHT a finite number, got 'a.safetensors:'"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(value, message):
    content = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    content["teacher"]["loras"] = value
    with pytest.raises(ValueError) as refusal:
        params.from_dict(content)
    assert str(refusal.value).startswith("teacher.loras must") and message in str(refusal.value)


def test_entries_become_loras():
    content = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    content["teacher"]["loras"] = ["a.safetensors:2"]
    assert params.from_dict(content).teacher.loras == (Lora("a.safetensors", 2.0),)


@pytest.mark.parametrize("family", MODULE)
def test_fused_weights_are_w_plus_weight_b_a(teachers, here, family):
    module = MODULE[family]
    first = write("a.safetensors", module, alpha=8.0 if family == "qwen_image" else None)
    second = write(HUB, module, rank=3, seed=1)
    bare = weights(backbones.load(teachers[family], "cpu", ("transformer",)).transformer)
    chosen = (Lora("a.safetensors", 0.5), Lora(HUB, -2.0))
    transformer = load(teachers[family], *chosen).transformer
    assert not any(isinstance(layer, LoraLayer) for layer in transformer.modules()) and switching.fusable(transformer)
    assert not any(weight.requires_grad for weight in transformer.parameters())
    bare[f"{module}.weight"] += 0.5 * first - 2 * second
    for name, weight in weights(transformer).items():
        torch.testing.assert_close(weight, bare[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", MODULE)
def test_stock_diffusers_fuses_the_same(teachers, here, family):
    write("a.safetensors", MODULE[family], alpha=8.0 if family == "qwen_image" else None)
    pipe = DiffusionPipeline.from_pretrained(teachers[family])
    pipe.load_lora_weights("loras", weight_name="a.safetensors")
    pipe.fuse_lora(components=["transformer"], lora_scale=0.7)
    pipe.unload_lora_weights()
    ours = load(teachers[family], Lora("a.safetensors", 0.7)).transformer
    for name, weight in weights(pipe.transformer).items():
        torch.testing.assert_close(ours.state_dict()[name], weight, rtol=1e-5, atol=1e-6)


def test_bfloat16_weights_are_rounded_once(teachers, here):
    delta = write("a.safetensors", MODULE["flux"])
    path, name = teachers["flux"], f"{MODULE['flux']}.weight"
    bare = load(path, dtype="bf16").transformer.state_dict()[name]
    fused = load(path, Lora("a.safetensors"), dtype="bf16").transformer
    assert torch.equal(fused.state_dict()[name], (bare.float() + delta).bfloat16())


def test_without_the_transformer_nothing_is_read(teachers, here):
    backbones.load(Teacher(path=teachers["flux"], loras=(Lora("nowhere.safetensors"),)), "cpu", ("text",))


def test_the_digest_follows_bytes_and_weight_and_is_the_old_one_without_loras(teachers, here):
    path = teachers["flux"]
    write("a.safetensors", MODULE["flux"])
    bare, one = backbones.digest(path), Lora("a.safetensors")
    assert backbones.digest(path, []) == bare
    digests = [bare, backbones.digest(path, [one]), backbones.digest(path, [replace(one, weight=0.9)])]
    shutil.copy("loras/a.safetensors", "loras/b.safetensors")
    assert backbones.digest(path, [Lora("b.safetensors")]) == digests[1], "the same bytes under another name"
    digests.append(backbones.digest(path, [one, one]))
    write("a.safetensors", MODULE["flux"], seed=1)
    digests.append(backbones.digest(path, [one]))
    assert len(set(digests)) == 5 and all(digest.startswith("sha256:") for digest in digests)


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        ("nowhere", (4, 4), "a.safetensors changes transformer.nowhere, which the transformer of .*flux does not have"),
        (MODULE["flux"], (64, 64), r"was trained for another base: .* must be \(32, 32\) as in .*, got \(64, 64\)"),
    ],
)
def test_a_lora_of_another_base_is_one_sentence(teachers, here, module, shape, message):
    write("a.safetensors", module, shape=shape)
    with pytest.raises(ValueError, match=message):
        load(teachers["flux"], Lora("a.safetensors"))


@pytest.mark.parametrize(
    ("weight", "spoil", "message"),
    [
        (1.0, float("nan"), "a.safetensors: transformer.*lora_B.weight must hold finite numbers, got NaN or infinity"),
        (1e38, 1e3, "a.safetensors: .*weight with its change must be finite in torch.float32, got infinity"),
    ],
)
def test_a_lora_that_would_make_weights_infinite_is_one_sentence(teachers, here, weight, spoil, message):
    write("a.safetensors", MODULE["flux"])
    tensors = load_file("loras/a.safetensors")
    tensors[f"transformer.{MODULE['flux']}.lora_B.weight"] *= spoil
    save_file(tensors, "loras/a.safetensors")
    with pytest.raises(ValueError, match=message):
        load(teachers["flux"], Lora("a.safetensors", weight))


def test_a_missing_file_is_named_with_the_mend(teachers, here):
    with pytest.raises(ValueError, match=r"the LoRA loras/a.safetensors is missing: copy it to loras/a.safetensors; a"):
        load(teachers["flux"], Lora("a.safetensors"))
    with pytest.raises(ValueError, match=f"the LoRA loras/{HUB} is missing: run `glance fetch`"):
        backbones.digest(teachers["flux"], [Lora(HUB)])


@pytest.mark.skipif(find_spec("torchao") is None, reason="pip install -e '.[quantization]'")
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_quantised_weight_is_rounded_after_the_addition(teachers, here, kind):
    delta = 0.01 * write("a.safetensors", MODULE["flux"])
    path, name = teachers["flux"], MODULE["flux"]
    original = load(path, dtype="bf16").transformer.state_dict()[f"{name}.weight"]
    fused = load(path, Lora("a.safetensors", 0.01), dtype="bf16", quantization=kind).transformer
    assert not switching.fusable(fused)
    expected = nn.Sequential(nn.Linear(32, 32, bias=False, dtype=torch.bfloat16))
    expected[0].weight.data = (original.float() + delta).bfloat16()
    from torchao import quantize_

    quantize_(expected, quantization.config(kind, torch.bfloat16).quant_mapping["transformer"].quant_type)
    assert torch.equal(fused.get_submodule(name).weight.dequantize(), expected[0].weight.dequantize())
    bare = load(path, dtype="bf16", quantization=kind).transformer
    assert type(bare.get_submodule(name).weight) is type(fused.get_submodule(name).weight)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="pip install -e '.[quantization]'")
def test_a_weight_of_four_bits_is_replaced():  # diffusers quantises a whole model to nf4 on a GPU only
    import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4").to("cpu")
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    quantization.replace_weight(layer, weight.bfloat16(), "nf4")
    error = layer(torch.eye(64, dtype=torch.bfloat16)).T.float() - weight
    assert 0.01 < error.norm() / weight.norm() < 0.15


@pytest.fixture
def styled(teachers, here):
    """A bundle for the FLUX teacher with a LoRA, made in a folder that has both."""
    write("a.safetensors", "proj_out")
    shipped = small_params(teachers["flux"])
    teacher = replace(shipped.teacher, loras=(Lora("a.safetensors", 0.5),))
    path = compute(shipped, backbones.load(teacher.path, "cpu", ()).schedule(64, 64))
    for seed, phase in enumerate(PHASES):
        generator = torch.Generator().manual_seed(seed)
        state = {
            f"{MODULE['flux']}.lora_A.weight": torch.randn(4, 32, generator=generator),
            f"{MODULE['flux']}.lora_B.weight": torch.randn(32, 4, generator=generator),
        }
        adapters.save(here / phase, state, LoraConfig(r=4, lora_alpha=4, target_modules=adapters.adapted(state)))
    folders = {phase: here / phase for phase in PHASES}
    return write_bundle(here / "bundle", folders, path, teacher, shipped.student)


def test_the_manifest_pins_the_loras_and_an_older_one_has_none(styled, teachers):
    (lora,) = styled.loras
    assert (lora.file, lora.weight) == ("a.safetensors", 0.5) and re.fullmatch("[0-9a-f]{64}", lora.sha256)
    assert styled.base_digest == backbones.digest(teachers["flux"], styled.loras) != backbones.digest(teachers["flux"])
    manifest = styled.folder / "glance.json"
    content = YAML(typ="safe", pure=True).load(manifest)
    del content["loras"]
    artifacts.write_json(manifest, content | {"format": 2})
    assert Bundle.load(styled.folder).loras == ()
    outside = {"file": "../a.safetensors", "weight": 1.0, "sha256": None}
    artifacts.write_json(manifest, content | {"loras": [outside]})
    with pytest.raises(ValueError, match="glance.json: teacher.loras must hold .*under loras/"):
        Bundle.load(styled.folder)


def test_the_models_card_makes_the_image_of_generate(styled, teachers):
    card = (styled.folder / "README.md").read_text()
    assert 'pipe.load_lora_weights("loras", weight_name="a.safetensors")  # sha256' in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace('folder = "."', 'folder = "bundle"')
    scope = {}
    exec(code, scope)
    stock = torch.tensor(list(scope["image"].getdata())).view(64, 64, 3)
    backbone = backbones.load(Teacher(path=teachers["flux"], loras=styled.loras), "cpu")
    ours = generating.generate(backbone, styled, ["a red star"], [0])[0]
    assert (ours.int() - stock.int()).abs().max() <= 1
    bare = generating.generate(backbones.load(teachers["flux"], "cpu"), styled, ["a red star"], [0])[0]
    assert (bare.int() - stock.int()).abs().max() > 1


def test_the_fused_format_has_the_loras_in_its_weights(styled, teachers, here):
    export("fused", styled.folder, here / "out")
    backbone = backbones.load(Teacher(path=teachers["flux"], loras=styled.loras), "cpu", ("transformer",))
    weights = "transformer/diffusion_pytorch_model.safetensors"
    bare, slow = load_file(teachers["flux"] / weights), load_file(here / "out/slow" / weights)
    changed = {name for name, weight in slow.items() if not torch.equal(weight, bare[name])}
    assert changed == {"proj_out.weight", f"{MODULE['flux']}.weight"}
    assert torch.equal(slow["proj_out.weight"], backbone.transformer.proj_out.weight)
    delta = adapters.delta(styled.states()["slow"], MODULE["flux"])
    torch.testing.assert_close(slow[f"{MODULE['flux']}.weight"] - bare[f"{MODULE['flux']}.weight"], delta)


def glance(*arguments):
    return CliRunner().invoke(main, list(arguments))


def test_generate_applies_the_loras_or_says_what_is_missing(styled, here):
    command = ["generate", "a red star", "--bundle", "bundle", "--out", "one.png"]
    done = glance(*command)
    assert done.exit_code == 0, done.output
    write("a.safetensors", MODULE["flux"], seed=5)
    done = glance(*command)
    assert done.exit_code == 1 and "loras/a.safetensors must have the sha256 " in done.output
    Path("loras/a.safetensors").unlink()
    done = glance(*command)
    assert done.exit_code == 1 and "the LoRA loras/a.safetensors is missing: copy it to" in done.output


@pytest.fixture
def fetching(here, monkeypatch):
    """params.yaml with a teacher that is there, one LoRA of one's own and one of the hub; the hub's answer."""
    content = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    content["teacher"]["loras"] = ["own.safetensors", f"{HUB}:0.5"]
    YAML().dump(content, here / "params.yaml")
    (here / content["teacher"]["path"]).mkdir(parents=True)
    asked = []

    def download(repository, filename, revision, local_dir):
        asked.append((repository, filename, revision))
        file = Path(local_dir) / filename
        file.parent.mkdir(parents=True)
        file.write_bytes(b"weights")
        return str(file)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    return asked


def test_fetch_gets_the_hubs_loras_beside_a_teacher_that_is_there(fetching, here):
    done = glance("fetch")
    assert done.exit_code == 0 and done.output == f"loras/{HUB}\n"
    assert (here / "loras" / HUB).read_bytes() == b"weights"
    assert fetching == [("someone/shade", "deep/shade.safetensors", "main")]
    assert not list((here / ".glance" / "downloads").iterdir())
    done = glance("fetch")  # nothing is missing: as without LoRAs
    assert done.exit_code == 1 and "teacher.hub must name owner/name@revision" in done.output and len(fetching) == 1
    with pytest.raises(ValueError, match=f"loras/{HUB} is there already; remove it to fetch it anew"):
        hub.fetch_lora(Lora(HUB))
    with pytest.raises(ValueError, match="teacher.loras must name owner/name@revision/FILE to fetch it, got own.safe"):
        hub.fetch_lora(Lora("own.safetensors"))


def test_fetch_gets_the_rivals_that_params_yaml_names(fetching, here):
    content = YAML(typ="safe", pure=True).load(here / "params.yaml")
    entry = LIGHTNING | {"weights": HUB, "steps": 2}
    experts = [{"weights": HUB, "steps": [0]}, {"weights": "own.safetensors", "steps": [1]}]
    other = entry | {"weights": "other/base@main/x.safetensors", "base": "other/base"}
    content["rivals"] = {"one": entry, "two": entry | {"weights": experts}, "other": other}
    content["teacher"] |= {"loras": [], "hub": "own/base@main"}
    YAML().dump(content, here / "params.yaml")
    done = glance("fetch")
    assert done.exit_code == 0 and done.output == f"rivals/{HUB}\n"
    assert (here / "rivals" / HUB).read_bytes() == b"weights" and not (here / "loras").exists()
    assert fetching == [("someone/shade", "deep/shade.safetensors", "main")]
    with pytest.raises(ValueError, match="rivals must name owner/name@revision/FILE to fetch it, got own.safetensors"):
        hub.fetch_lora(RivalFile("own.safetensors"))
    finding = diagnosis.teacher()
    assert not finding.ok and finding.text == "rivals/own.safetensors is missing"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError, "someone/shade is gated: accept its licence at huggingface.co/someone/shade"),
        (RevisionNotFoundError, "teacher.loras: someone/shade has no revision main"),
        (RemoteEntryNotFoundError, f"teacher.loras: someone/shade has no file for loras/{HUB} at revision main"),
        (HfHubHTTPError, "the hub refuses someone/shade: no"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(fetching, here, monkeypatch, error, message):
    def refuse(*arguments, **options):
        raise error("no", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    done = glance("fetch")
    assert done.exit_code == 1 and message in done.output
    assert not (here / "loras").exists()


def test_a_hub_that_does_not_answer_is_one_sentence(here, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = f"the hub does not answer for someone/shade: go online, or copy the file to loras/{HUB} yourself"
    with pytest.raises(ValueError, match=message):
        hub.fetch_lora(Lora(HUB))
    assert not (here / "loras").exists()


def test_doctor_names_a_missing_lora(fetching):
    finding = diagnosis.teacher()
    assert not finding.ok and finding.text == "loras/own.safetensors is missing"
    assert finding.fix.startswith("copy it to loras/own.safetensors")
