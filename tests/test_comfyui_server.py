"""The format `comfyui` against ComfyUI itself: what its server says of each node, and the images that it makes.

The tests need a checkout of ComfyUI that starts here (docs/comfyui.md says how). Without one they are skipped.
"""

import json
import os
import shutil
from base64 import b64encode
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline import backbones
from pipeline.artifacts import read_json
from pipeline.backbones.packing import unpack
from pipeline.bundle.formats import export
from pipeline.bundle.formats.comfyui.export import PROMPT, SEED
from pipeline.bundle.formats.comfyui.ui import KINDS
from pipeline.bundle.formats.comfyui.ui import SEED as SEED_WIDGET
from pipeline.bundle.generating import generate
from tests.comfyui_case import CHECKOUT, NEGATIVE, Server, make_bundle, published_names

HEIGHT, WIDTH = 64, 96
CASES = {  # family, adapter of each step, true CFG scale of the student
    "flux": ("flux", ("slow", "slow", "fast", "fast"), 1.0),
    "flux-guided-three": ("flux", ("a", "b", "b", "c"), 2.0),
    "flux-one": ("flux", ("a", "a", "a", "a"), 1.0),
    "qwen_image": ("qwen_image", ("slow", "slow", "fast", "fast"), 1.0),
    "z_image": ("z_image", ("slow", "slow", "fast", "fast"), 1.0),
    "z_image-guided": ("z_image", ("slow", "slow", "slow", "fast"), 3.0),
}
ERROR = {"flux": 1e-5, "qwen_image": 1e-5, "z_image": 1e-3}  # relative; diffusers and ComfyUI round Z-Image otherwise
NUMBERS = ("INT", "FLOAT")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get(CHECKOUT), reason=f"{CHECKOUT} names no checkout of ComfyUI"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Server(Path(os.environ[CHECKOUT]), tmp_path_factory.mktemp("server"))
    yield running
    running.close()


@pytest.fixture(scope="module", params=CASES)
def case(request, server, tmp_path_factory):
    """A bundle, its exported folder, and the files of both where ComfyUI looks for them."""
    family, acting, scale = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    bundle = make_bundle(folder, family, acting=acting, name=request.param, true_cfg_scale=scale)
    out = folder / "out"
    export("comfyui", bundle.folder, out, height=HEIGHT, width=WIDTH, picture=False)
    api = read_json(out / "workflow_api.json")
    base, weights = Path(bundle.base_model), "diffusion_pytorch_model.safetensors"
    transformer = published_names(family, base / "transformer" / weights, folder / "published.safetensors")
    server.place("diffusion_models", f"{base.name}.safetensors", transformer)
    for node in api.values():
        for name, value in node["inputs"].items():
            if name.startswith("clip_name"):
                server.place("text_encoders", value)
            elif name == "vae_name":  # each case has its own, and the server remembers what it read under a name
                node["inputs"][name] = f"{base.name}-{value}"
                server.place("vae", node["inputs"][name], base / "vae" / weights)
            elif name == "lora_name":
                server.place("loras", value, out / "loras" / value)
    return bundle, api, out


def faults(api, declared):
    """What is wrong with a workflow by ComfyUI's declarations of its nodes, one sentence each."""
    for key, node in api.items():
        kind, given = node["class_type"], node["inputs"]
        if kind not in declared:
            yield f"{kind} is no node"
            continue
        required = declared[kind]["input"].get("required", {})
        known = required | declared[kind]["input"].get("optional", {})
        yield from (f"{kind} needs {name}" for name in required.keys() - given.keys())
        yield from (f"{kind} has no {name}" for name in given.keys() - known.keys())
        for name in given.keys() & known.keys():
            what, *options = known[name]
            value, rules = given[name], options[0] if options else {}
            if isinstance(value, list):
                source, output = value
                made = declared[api[source]["class_type"]]["output"][output]
                if made != what:
                    yield f"{kind}.{name} of node {key} takes {what}, got {made}"
                continue
            choices = what if isinstance(what, list) else rules.get("options") if what == "COMBO" else None
            if choices is not None and value not in choices:
                yield f"{kind}.{name} takes {choices}, got {value}"
            if what in NUMBERS and not rules.get("min", value) <= value <= rules.get("max", value):
                yield f"{kind}.{name} goes from {rules['min']} to {rules['max']}, got {value}"


def test_comfyui_declares_each_node_and_input_as_the_workflow_uses_it(server, case):
    _, api, _ = case
    declared = server.declared()
    assert list(faults(api, declared)) == []
    broken = json.loads(json.dumps(api))
    sampler = next(node for node in broken.values() if node["class_type"] == "SamplerCustomAdvanced")
    sampler["inputs"] |= {"noise": sampler["inputs"]["sigmas"], "steps": 3}
    del sampler["inputs"]["sampler"]
    assert sorted(faults(broken, declared))[:2] == [
        "SamplerCustomAdvanced has no steps",
        "SamplerCustomAdvanced needs sampler",
    ]


def test_comfyui_declares_the_kinds_of_the_ui_form_in_the_same_order(server):
    declared = server.declared()
    for name, kind in KINDS.items():
        inputs = declared[name]["input_order"]
        order = [key for part in ("required", "optional") for key in inputs.get(part, [])]
        required, optional = (declared[name]["input"].get(part, {}) for part in ("required", "optional"))
        types = {key: one[0] for part in (required, optional) for key, one in part.items()}
        sockets = [key for key, _ in kind.sockets]
        assert [key for key in order if key in sockets] == sockets
        assert [key for key in order if key not in sockets] == list(kind.widgets)
        assert all(types[key] == what for key, what in kind.sockets)
        outputs = zip(declared[name]["output_name"], declared[name]["output"], strict=True)
        assert list(outputs)[: len(kind.outputs)] == list(kind.outputs)  # later versions may have more
        options = {key: one[1] for part in (required, optional) for key, one in part.items() if len(one) > 1}
        followed = [key for key, rules in options.items() if rules.get("control_after_generate")]
        assert followed == [key for key in kind.widgets if key == SEED_WIDGET], "the page adds a widget behind these"


def with_states(api, file):
    """The workflow with ready conditionings in place of ComfyUI's text encoders, and the last latent as a file."""
    api = json.loads(json.dumps(api))
    for node in api.values():
        if node["class_type"] == "CLIPTextEncode":
            node |= {"class_type": "GlanceConditioning", "inputs": {"text": node["inputs"]["text"], "file": file}}
    last = next(node["inputs"]["samples"] for node in api.values() if node["class_type"] == "VAEDecode")
    api["latent"] = {"class_type": "SaveLatent", "inputs": {"samples": last, "filename_prefix": "latent"}}
    return api


def states(backbone, tokens, path):
    """Writes the states of both texts, without padding where the family reads none."""
    tensors = {}
    for number, text in enumerate((PROMPT, NEGATIVE)):
        conditioning = backbone.encode([text], tokens)
        mask = conditioning.pop("prompt_embeds_mask", None)
        if mask is not None:
            conditioning["prompt_embeds"] = conditioning["prompt_embeds"][:, : int(mask.sum())]
        tensors |= {f"{number}.{name}": tensor.contiguous() for name, tensor in conditioning.items()}
    save_file(tensors, path, {"texts": json.dumps([PROMPT, NEGATIVE])})


def ours(bundle):
    """The final latents, (1, 16, h, w) on the scale of the autoencoder's input, and the image of the pair."""
    backbone = backbones.load(bundle.base(), "cpu")
    ends, decode = [], backbone.decode
    backbone.decode = lambda x, height, width: ends.append(x) or decode(x, height, width)
    image = generate(backbone, bundle, [PROMPT], [SEED])[0].numpy()
    x, vae = unpack(ends[0], backbone.grid(bundle.height, bundle.width)), backbone.vae_config
    if "latents_mean" in vae and vae["latents_mean"]:
        mean, std = (torch.tensor(vae[key])[None, :, None, None] for key in ("latents_mean", "latents_std"))
        return backbone, x * std + mean, image
    return backbone, x / vae["scaling_factor"] + vae["shift_factor"], image


def test_comfyui_runs_the_workflow_to_the_latents_and_the_image_of_the_pair(server, case):
    bundle, api, _ = case
    backbone, latents, image = ours(replace(bundle, height=HEIGHT, width=WIDTH))
    file = f"{Path(bundle.base_model).name}.safetensors"
    states(backbone, bundle.max_sequence_length, server.folder / "input" / file)
    api = with_states(api, file)
    if bundle.family == "qwen_image":  # its decoder's published file has other names than the one of diffusers
        api = {key: node for key, node in api.items() if node["class_type"] not in ("VAEDecode", "SaveImage")}
    before = len(server.log.read_text())
    ended = server.run(api)
    said = server.log.read_text()[before:]
    assert ended["status"]["status_str"] == "success", said
    assert "lora key not loaded" not in said and "unet missing" not in said and "unet unexpected" not in said
    theirs = load_file(server.output(".latent"))["latent_tensor"].reshape(latents.shape)
    error = float((theirs - latents).norm() / latents.norm())
    print(f"{file}: latents differ by {error:.1e}")
    assert error < ERROR[bundle.family]
    if bundle.family != "qwen_image":
        picture = np.asarray(Image.open(server.output(".png")))
        assert image.std() > 10, "an image with something in it"
        assert np.abs(picture.astype(int) - image).max() <= 2


DROP = """async ([name, type, base64]) => {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], name, {type}));
    const place = document.querySelector("#graph-canvas");
    for (const event of ["dragenter", "dragover", "drop"])
        place.dispatchEvent(new DragEvent(event, {dataTransfer: data, bubbles: true, cancelable: true}));
}"""
GRAPH = "async () => (await window.app.graphToPrompt()).output"
CLEAR = "() => window.app.graph.clear()"


@pytest.fixture(scope="module")
def page(server):
    """ComfyUI's own page in a browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    if not (browser := shutil.which("chromium")):
        pytest.skip("the browser chromium is not installed")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = opened.new_page(viewport={"width": 1800, "height": 1000})
        page.goto(server.address, timeout=120_000)
        page.wait_for_function("window.app?.graph && window.app.extensionManager", timeout=120_000)
        page.wait_for_timeout(3000)  # the page opens its own first workflow
        yield page
        opened.close()


@pytest.mark.parametrize("case", ["flux-guided-three", "qwen_image", "z_image"], indirect=True)
@pytest.mark.parametrize("name", ["workflow.json", "workflow_api.json", "sample.png"])
def test_the_page_loads_a_dropped_file_as_the_workflow(page, case, name, tmp_path):
    bundle, _, _ = case
    export("comfyui", bundle.folder, tmp_path / "out")
    page.evaluate(CLEAR)
    assert page.evaluate(GRAPH) == {}
    content = b64encode((tmp_path / "out" / name).read_bytes()).decode()
    page.evaluate(DROP, [name, "image/png" if name.endswith("png") else "application/json", content])
    page.wait_for_function("window.app.graph._nodes.length > 10", timeout=60_000)
    page.wait_for_timeout(1000)
    loaded = page.evaluate(GRAPH)
    wanted = read_json(tmp_path / "out" / "workflow_api.json")
    assert {key: node["class_type"] for key, node in loaded.items()} == {
        key: node["class_type"] for key, node in wanted.items()
    }
    assert {key: node["inputs"] for key, node in loaded.items()} == {
        key: node["inputs"] for key, node in wanted.items()
    }
