"""Each family through the real stages, and its exported pair in the family's own stock pipeline."""

from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from peft.tuners.lora import LoraLayer
from PIL import Image
from safetensors.torch import save_file

from pipeline import backbones
from pipeline.bundle.manifest import Bundle
from tests.conftest import make_project, slow
from tests.tiny import make_tiny_flux, make_tiny_qwen_image, make_tiny_z_image

PROMPT, SEED = "a heart left of a ring", 7
TEACHERS = {
    "flux": (partial(make_tiny_flux, guidance_embeds=True), {"true_cfg_scale": 1.0, "guidance_scale": 5.0}),
    "qwen_image": (make_tiny_qwen_image, {"true_cfg_scale": 4.0, "negative_prompt": " "}),
    "z_image": (make_tiny_z_image, {"true_cfg_scale": 4.0, "loras": ["own/style.safetensors:0.7"]}),
}


@pytest.fixture(scope="module", params=TEACHERS)
@slow
def run(request, tmp_path_factory):
    """A project with a tiny teacher of one family, Z-Image with a style fused into it, after `dvc repro`."""
    make, settings = TEACHERS[request.param]
    temporary = tmp_path_factory.mktemp(request.param)
    project = make_project(temporary / "clone", temporary, make, **settings)
    if "loras" in settings:
        write_style(project.folder / "loras" / "own" / "style.safetensors")
    project.succeed("dvc", "repro")
    return request.param, project


def write_style(path):
    """A LoRA of Z-Image's output layer and of a projection, strong enough to be seen."""
    generator = torch.Generator().manual_seed(0)
    modules = ("all_final_layer.2-1.linear", "layers.0.attention.to_out.0")
    tensors = {
        f"transformer.{module}.lora_{side}.weight": torch.randn(shape, generator=generator)
        for module in modules
        for side, shape in {"A": (2, 32), "B": (32, 2)}.items()
    }
    path.parent.mkdir()
    save_file(tensors, path)


def test_the_exported_pair_makes_the_same_image_in_the_stock_pipeline(run):
    family, project = run
    bundle = Bundle.load(project.folder / "artifacts" / "bundle")
    assert bundle.family == family
    assert bool(bundle.loras) == (family == "z_image")
    teacher = project.folder / "artifacts" / "teacher"
    project.succeed("glance", "generate", PROMPT, "--seed", str(SEED), "--out", "ours.png")
    ours = np.asarray(Image.open(project.folder / "ours.png")).astype(int)

    pipe = DiffusionPipeline.from_pretrained(teacher)
    pipe.set_progress_bar_config(disable=True)
    for lora in bundle.loras:
        pipe.load_lora_weights(project.folder / lora.path.parent, weight_name=lora.path.name)
        pipe.fuse_lora(components=["transformer"], lora_scale=lora.weight)
        pipe.unload_lora_weights()
    for phase in bundle.phases:
        pipe.load_lora_weights(bundle.folder, weight_name=phase.file, adapter_name=phase.name)
    states = bundle.states()
    for phase, state in states.items():
        layers = {
            name for name, layer in pipe.transformer.named_modules()
            if isinstance(layer, LoraLayer) and phase in layer.lora_A
        }  # fmt: skip
        assert layers == {key.rsplit(".", 2)[0] for key in state}, "every key is used, and none is missing"

    def hand_over(pipe, step, timestep, tensors):
        if step == len(bundle.phases[0].steps) - 1:
            pipe.set_adapters("fast")
        return tensors

    def image(**options):
        return pipe(
            [PROMPT],
            sigmas=list(bundle.u),
            height=bundle.height,
            width=bundle.width,
            max_sequence_length=bundle.max_sequence_length,
            generator=torch.Generator().manual_seed(SEED),
            **options,
        ).images[0]

    guidance = bundle.guidance
    called = backbones.load(teacher, "cpu", ()).stock_guidance(
        guidance.student_true_cfg_scale, guidance.guidance_scale, guidance.negative_prompt
    )
    pipe.set_adapters("slow")
    stock = np.asarray(image(callback_on_step_end=hand_over, **called)).astype(int)
    assert np.abs(stock - ours).max() <= 1
    pipe.disable_lora()
    assert np.abs(np.asarray(image(**called)).astype(int) - ours).max() > 1, "the adapters change the image"


def test_every_stage_ran_and_is_up_to_date(run):
    _, project = run
    assert "register" in project.lock()
    assert "up to date" in project.succeed("dvc", "status")


@pytest.mark.parametrize("run", ["z_image"], indirect=True)  # the one with a style
def test_another_style_is_another_teacher(run):
    _, project = run
    file = project.folder / "loras" / "own" / "style.safetensors"
    before = file.read_bytes()
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    status = project.succeed("dvc", "status")
    for stage in (
        "cache_trajectories",
        "train_slow",
        "train_fast",
        "train_controls",
        "export_adapter",
        "generate_images",
    ):
        assert f"{stage}:" in status
    refused = project.run("glance", "generate", PROMPT)
    assert refused.returncode == 1 and "loras/own/style.safetensors must have the sha256" in refused.stdout
    file.write_bytes(before)
