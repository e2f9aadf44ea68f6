"""The format `comfyui`: a graph that runs each phase on its own levels, in both of ComfyUI's forms, and its files."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from pipeline import backbones, cli, image_files
from pipeline.artifacts import read_json, write_json
from pipeline.bundle.formats import FORMATS, export
from pipeline.bundle.formats.comfyui import ui
from pipeline.bundle.formats.comfyui.graph import Part, Run, decimal, workflow
from pipeline.bundle.formats.comfyui.models import MODELS
from pipeline.bundle.generating import generate
from pipeline.bundle.manifest import MANIFEST, Bundle, bundle_digest
from pipeline.styles import Lora
from tests.comfyui_case import NEGATIVE, make_bundle
from tests.tiny import make_tiny_flux, make_tiny_qwen_image, make_tiny_z_image

MAKERS = {"flux": make_tiny_flux, "qwen_image": make_tiny_qwen_image, "z_image": make_tiny_z_image}
PHASES = ("a", "b", "b", "c")  # one step, two steps, one step


@pytest.fixture(scope="module", params=MAKERS)
def bundle(request, tmp_path_factory):
    """A bundle of three phases per family."""
    family = request.param
    return make_bundle(tmp_path_factory.mktemp(family), family, MAKERS[family], PHASES)


@pytest.fixture(scope="module")
def out(bundle, tmp_path_factory):
    """The bundle in the format, with its picture."""
    folder = tmp_path_factory.mktemp("out") / "out"
    export("comfyui", bundle.folder, folder)
    return folder


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    """A bundle of two phases of FLUX.1."""
    return make_bundle(tmp_path_factory.mktemp("flux"), "flux", make_tiny_flux)


@pytest.fixture
def copy(flux, tmp_path):
    """A copy of the FLUX.1 bundle, to be changed."""
    return Path(shutil.copytree(flux.folder, tmp_path / "bundle"))


def glance(*arguments, code=0):
    """Runs `glance export --format comfyui`; what it prints and what it complains about."""
    done = CliRunner().invoke(cli.main, ["export", "--format", "comfyui", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr.strip()


def refused(*arguments):
    """The one sentence of a command that must fail, and that leaves nothing."""
    printed, said = glance(*arguments, code=1)
    assert printed == "" and said.startswith("Error: ") and "\n" not in said
    assert not Path(arguments[-1]).exists()
    return said.removeprefix("Error: ")


def kinds(api, kind):
    """The nodes of a class, in order, as (id, inputs)."""
    return [(key, node["inputs"]) for key, node in api.items() if node["class_type"] == kind]


def levels(api, link):
    """What ComfyUI's ManualSigmas and SplitSigmas give at a link."""
    node, inputs = api[link[0]]["class_type"], api[link[0]]["inputs"]
    if node == "ManualSigmas":
        return [float(word) for word in inputs["sigmas"].split(",")]
    assert node == "SplitSigmas"
    whole, step = levels(api, inputs["sigmas"]), inputs["step"]
    return [whole[: step + 1], whole[step:]][link[1]]


def test_each_phase_runs_its_lora_on_its_own_levels_and_hands_its_noisy_latent_over(bundle, out):
    api = read_json(out / "workflow_api.json")
    sigmas = bundle.plan(backbones.load(bundle.base(), "cpu", parts=())).sigmas.to(torch.float32).tolist()
    samplers = kinds(api, "SamplerCustomAdvanced")
    first = 0
    for phase, (_, inputs) in zip(bundle.phases, samplers, strict=True):
        last = first + len(phase.steps)
        assert np.float32(levels(api, inputs["sigmas"])).tolist() == sigmas[first : last + 1]
        first = last
        guider = api[inputs["guider"][0]]
        assert guider["class_type"] == "BasicGuider"
        lora = api[guider["inputs"]["model"][0]]
        assert lora["class_type"] == "LoraLoaderModelOnly" and lora["inputs"]["strength_model"] == 1
        assert (out / "loras" / lora["inputs"]["lora_name"]).read_bytes() == bundle.files[phase.name].read_bytes()
        assert api[lora["inputs"]["model"][0]]["class_type"] == "UNETLoader", "the base, not the LoRA before"
        assert api[inputs["sampler"][0]]["inputs"] == {"sampler_name": "euler"}
    noises = [api[inputs["noise"][0]]["class_type"] for _, inputs in samplers]
    assert noises == ["RandomNoise", "DisableNoise", "DisableNoise"]
    assert all(later["latent_image"] == [key, 0] for (key, _), (_, later) in pairwise(samplers))
    assert api[samplers[0][1]["latent_image"][0]]["inputs"] == {"width": 64, "height": 64, "batch_size": 1}
    assert kinds(api, "VAEDecode")[0][1]["samples"] == [samplers[-1][0], 0]


def test_a_link_leads_to_a_node_before(out):
    api = read_json(out / "workflow_api.json")
    order = {key: number for number, key in enumerate(api)}
    links = [(key, value[0]) for key, node in api.items() for value in node["inputs"].values() if type(value) is list]
    assert links and all(order[source] < order[key] for key, source in links)


def test_the_text_is_read_as_the_family_reads_it(bundle, out):
    api = read_json(out / "workflow_api.json")
    flux = bundle.family == "flux"
    assert [inputs["guidance"] for _, inputs in kinds(api, "FluxGuidance")] == [3.5] * flux
    padded = [inputs["min_length"] for _, inputs in kinds(api, "T5TokenizerOptions")]
    assert padded == [bundle.max_sequence_length] * flux
    loader = "DualCLIPLoader" if flux else "CLIPLoader"
    ((_, inputs),) = kinds(api, loader)
    assert inputs["type"] == MODELS[bundle.family].text_type


def test_the_ui_form_says_the_same_as_the_api_form(out):
    api, form = read_json(out / "workflow_api.json"), read_json(out / "workflow.json")
    links = {link[0]: link for link in form["links"]}
    assert len(links) == len(form["links"]) == form["last_link_id"]
    back = {}
    for node in form["nodes"]:
        kind, values = ui.KINDS[node["type"]], list(node["widgets_values"])
        if "noise_seed" in kind.widgets:
            assert values.pop(kind.widgets.index("noise_seed") + 1) == "fixed"
        inputs = dict(zip(kind.widgets, values, strict=True))
        for slot, socket in enumerate(node["inputs"]):
            number, source, output, target, entry, what = links[socket["link"]]
            assert (target, entry, what) == (node["id"], slot, socket["type"])
            inputs[socket["name"]] = [str(source), output]
        back[str(node["id"])] = {
            "class_type": node["type"],
            "inputs": inputs,
            "_meta": {"title": node["title"]},
        }
    assert back == api
    made = {(node["id"], i): one for node in form["nodes"] for i, one in enumerate(node["outputs"])}
    for link in form["links"]:
        assert link[0] in made[link[1], link[2]]["links"] and made[link[1], link[2]]["type"] == link[5]


def test_no_node_of_the_ui_form_covers_another(out):
    boxes = [(*node["pos"], *node["size"]) for node in read_json(out / "workflow.json")["nodes"]]
    for i, (x, y, width, height) in enumerate(boxes):
        for other_x, other_y, other_width, other_height in boxes[:i]:
            beside = x >= other_x + other_width or other_x >= x + width
            assert beside or y >= other_y + other_height + 30 or other_y >= y + height + 30  # 30 pixels of title


def test_the_picture_is_drawn_with_the_pair_and_carries_the_workflow(bundle, out):
    image, texts = image_files.read(out / "sample.png"), image_files.texts(out / "sample.png")
    assert json.loads(texts["prompt"]) == read_json(out / "workflow_api.json")
    assert json.loads(texts["workflow"]) == read_json(out / "workflow.json")
    api = json.loads(texts["prompt"])
    ((_, text),), ((_, noise),) = kinds(api, "CLIPTextEncode"), kinds(api, "RandomNoise")
    backbone = backbones.load(bundle.base(), "cpu")
    assert np.array_equal(image, generate(backbone, bundle, [text["text"]], [noise["noise_seed"]])[0].numpy())
    assert "Steps: 4" in texts["parameters"]


def test_the_readme_names_each_file_of_the_workflow(bundle, out):
    text = (out / "README.md").read_text()
    api = read_json(out / "workflow_api.json")
    suffix = ".safetensors"
    files = {value for node in api.values() for value in node["inputs"].values() if str(value).endswith(suffix)}
    assert len(files) == 3 + 2 + len(MODELS[bundle.family].text_encoders)
    assert all(file in text for file in files)
    assert "64 x 64" in text and "ComfyUI publishes no file of this base" in text


def test_without_its_base_a_bundle_gives_the_same_workflow_and_no_picture(bundle, out, tmp_path):
    folder = shutil.copytree(bundle.folder, tmp_path / "bundle")
    manifest = read_json(folder / MANIFEST)
    write_json(folder / MANIFEST, manifest | {"base_model": str(tmp_path / "teacher" / "base")})
    digest = bundle_digest(folder)
    printed, _ = glance("--bundle", folder, tmp_path / "out")
    assert bundle_digest(folder) == digest
    files = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert sorted(printed.splitlines()) == [str(tmp_path / "out" / file) for file in files]
    assert "sample.png" not in map(str, files)
    names = ("workflow_api.json", "workflow.json")
    assert all((tmp_path / "out" / name).read_bytes() == (out / name).read_bytes() for name in names)
    for option in ("--width", "--height"):
        said = refused("--bundle", folder, option, 128, tmp_path / "other")
        assert said.startswith(f"{option} needs the scheduler of the base model {tmp_path}/teacher/base, which is not")
    said = refused("--bundle", folder, "--teacher", tmp_path / "nowhere", tmp_path / "other")
    assert said.startswith(f"the base model {tmp_path}/nowhere is not here")


def test_a_size_changes_the_latent_and_the_levels_of_a_shift_by_resolution(bundle, tmp_path):
    glance("--bundle", bundle.folder, "--width", 128, "--height", 96, tmp_path / "out")
    api = read_json(tmp_path / "out" / "workflow_api.json")
    assert kinds(api, "EmptySD3LatentImage")[0][1] == {"width": 128, "height": 96, "batch_size": 1}
    with Image.open(tmp_path / "out" / "sample.png") as image:
        assert image.size == (128, 96)
    ((_, inputs),) = kinds(api, "ManualSigmas")
    found = [float(word) for word in inputs["sigmas"].split(",")]
    schedule = backbones.load(bundle.base(), "cpu", parts=()).schedule(96, 128)
    np.testing.assert_allclose(found, schedule.sigmas(bundle.u), rtol=1e-7)
    own = [*(sigma for phase in bundle.phases for sigma in phase.sigmas[:-1]), 0.0]
    assert np.allclose(found, own) == (bundle.family == "z_image"), "only Z-Image has one shift for all sizes"


@pytest.mark.parametrize("sigma", [1.0, 0.0, 0.02, 1e-5, 3e-7, 1 / 3, 0.9732041354])
def test_a_level_is_written_in_plain_decimals_that_float32_reads_back(sigma):
    text = decimal(sigma)
    assert set(text) <= set("0123456789.") and not text.endswith(".")
    assert np.float32(float(text)) == np.float32(sigma)


def test_true_cfg_takes_both_prompts_through_a_guider_of_its_own(flux, copy, tmp_path):
    manifest = read_json(copy / MANIFEST)
    manifest["guidance"]["student_true_cfg_scale"] = 2.5
    write_json(copy / MANIFEST, manifest)
    export("comfyui", copy, tmp_path / "out", picture=False)
    api = read_json(tmp_path / "out" / "workflow_api.json")
    assert not kinds(api, "BasicGuider")
    assert len(kinds(api, "CFGGuider")) == 2
    for _, inputs in kinds(api, "CFGGuider"):
        assert inputs["cfg"] == 2.5
        texts = []
        for side in ("positive", "negative"):
            guided = api[inputs[side][0]]
            assert guided["class_type"] == "FluxGuidance"
            texts.append(api[guided["inputs"]["conditioning"][0]]["inputs"]["text"])
        assert texts == ["a red star", NEGATIVE]
    assert "twice, for the prompt and for the negative prompt" in (tmp_path / "out" / "README.md").read_text()


def test_one_phase_needs_no_split_and_many_need_one_less(flux):
    def made(count):
        parts = tuple(Part(name=f"p{i}", file=f"p{i}.safetensors", steps=1) for i in range(count))
        sigmas = (*(1 - i / count for i in range(count)), 0.0)
        values = dict(prompt="", negative_prompt="", seed=1, height=64, width=64, name="x", max_sequence_length=8)
        scales = dict(true_cfg_scale=1.0, guidance_scale=1.0)
        files = dict(models=MODELS["flux"], transformer="x.safetensors", styles=(("style.safetensors", 0.7),))
        return workflow(Run(parts=parts, sigmas=sigmas, **files, **values, **scales))

    for count in range(1, 6):
        api = made(count)
        assert len(kinds(api, "SplitSigmas")) == count - 1
        found = [levels(api, inputs["sigmas"]) for _, inputs in kinds(api, "SamplerCustomAdvanced")]
        np.testing.assert_allclose(
            [one[0] for one in found] + [0], [1 - i / count for i in range(count + 1)], atol=1e-7
        )
        assert len(kinds(api, "DisableNoise")) == (count > 1)
        (style, values), *loras = kinds(api, "LoraLoaderModelOnly")
        assert (values["lora_name"], values["strength_model"]) == ("style.safetensors", 0.7)
        assert [inputs["model"] for _, inputs in loras] == [[style, 0]] * count


def test_a_lora_of_the_base_is_in_the_workflow_and_in_the_readme(flux, tmp_path):
    with_style = replace(flux, loras=(Lora("own/style.safetensors", 0.7, "0" * 64),))
    FORMATS["comfyui"].write(with_style, tmp_path)
    assert kinds(read_json(tmp_path / "workflow_api.json"), "LoraLoaderModelOnly")[0][1]["strength_model"] == 0.7
    assert (
        "| `style.safetensors` | `models/loras` | a LoRA of the base, strength 0.7 |"
        in (tmp_path / "README.md").read_text()
    )


def test_lora_files_of_other_bundles_have_other_names(flux, copy, tmp_path):
    shutil.copyfile(copy / "fast.safetensors", copy / "slow.safetensors")
    names = []
    for number, folder in enumerate((flux.folder, copy)):
        export("comfyui", folder, tmp_path / str(number), picture=False)
        names.append({path.name for path in (tmp_path / str(number) / "loras").iterdir()})
    assert all(name.startswith("glance-base-4steps-") for name in names[0] | names[1])
    assert len(names[0] & names[1]) == 1, "the fast LoRA has the same bytes and the same name"


def test_a_base_that_comfyui_publishes_is_named_as_there(flux, tmp_path):
    for base, file in (("models/FLUX.1-dev", "flux1-dev.safetensors"), ("models/mine", "mine.safetensors")):
        folder = tmp_path / Path(base).name
        folder.mkdir()
        FORMATS["comfyui"].write(replace(flux, base_model=base), folder)
        assert kinds(read_json(folder / "workflow_api.json"), "UNETLoader")[0][1]["unet_name"] == file
        assert ("ComfyUI publishes no file" in (folder / "README.md").read_text()) == (base == "models/mine")


def test_a_base_that_comfyui_cannot_load_is_said(flux, out, tmp_path):
    said = "ComfyUI cannot run this workflow. The latents of base have 8 channels"
    assert said in (out / "README.md").read_text()
    FORMATS["comfyui"].write(replace(flux, base_model="models/FLUX.1-dev"), tmp_path)
    assert "cannot run" not in (tmp_path / "README.md").read_text(), "nothing is known of a base that is not here"


def test_another_seed_in_another_precision_is_said(flux, tmp_path):
    for dtype, family, said in (("fp32", "flux", False), ("bf16", "flux", True), ("bf16", "z_image", False)):
        folder = tmp_path / f"{dtype}-{family}"
        folder.mkdir()
        FORMATS["comfyui"].write(replace(flux, dtype=dtype, family=family, base_model="away"), folder)
        assert ("the same seed gives another\nimage" in (folder / "README.md").read_text()) == said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "official"}, "the format comfyui needs the path consistent, got official: ComfyUI's samplers always"),
        ({"solver": "ab2"}, "the format comfyui needs the solver euler, got ab2: ComfyUI's sampler of this kind"),
        ({"family": "sana"}, "family must be one of flux, qwen_image, z_image for the format comfyui, got 'sana'"),
        (
            {"family": "qwen_image", "true_cfg_scale": 4.0},
            "the format comfyui needs student.true_cfg_scale 1 for qwen_image, got 4.0: ComfyUI's own nodes do not",
        ),
    ],
)
def test_what_its_own_nodes_cannot_do_is_refused(copy, tmp_path, changes, message):
    manifest = read_json(copy / MANIFEST)
    scale = changes.get("true_cfg_scale", 1.0)
    manifest["guidance"]["student_true_cfg_scale"] = scale
    write_json(copy / MANIFEST, manifest | {key: value for key, value in changes.items() if key != "true_cfg_scale"})
    assert refused("--bundle", copy, tmp_path / "out").startswith(message)


@pytest.mark.parametrize(
    ("option", "pixels", "near"), [("--width", 100, 96), ("--height", 0, 16), ("--width", -16, 16)]
)
def test_a_size_that_has_no_whole_tokens_is_refused(flux, tmp_path, option, pixels, near):
    said = refused("--bundle", flux.folder, option, pixels, tmp_path / "out")
    assert said == f"{option} must be a positive multiple of 16 pixels, got {pixels}; the nearest is {near}"


def test_a_format_without_a_size_takes_none(flux, tmp_path):
    with pytest.raises(ValueError, match="^--height is for formats that depend on the size of the images, got fused$"):
        export("fused", flux.folder, tmp_path / "out", height=64)


def test_the_picture_can_be_left_out(flux, tmp_path):
    printed, _ = glance("--bundle", flux.folder, "--no-picture", tmp_path / "out")
    assert "workflow_api.json" in printed and "sample.png" not in printed
    assert Bundle.load(flux.folder) == flux
