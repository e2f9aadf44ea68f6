"""Each family through the real stages, and its exported pair in the family's own stock pipeline."""

from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from peft.tuners.lora import LoraLayer
from PIL import Image

from pipeline import backbones, export
from tests.conftest import make_project
from tests.tiny import make_tiny_flux, make_tiny_qwen_image, make_tiny_z_image

PROMPT, SEED = "a heart left of a ring", 7
TEACHERS = {
    "flux": (partial(make_tiny_flux, guidance_embeds=True), {"true_cfg_scale": 1.0, "guidance_scale": 5.0}),
    "qwen_image": (make_tiny_qwen_image, {"true_cfg_scale": 4.0, "negative_prompt": " "}),
    "z_image": (make_tiny_z_image, {"true_cfg_scale": 4.0}),
}


@pytest.fixture(scope="module", params=TEACHERS)
def run(request, tmp_path_factory):
    """A project with a tiny teacher of one family, after `dvc repro`."""
    make, settings = TEACHERS[request.param]
    temporary = tmp_path_factory.mktemp(request.param)
    project = make_project(temporary / "clone", temporary, make, **settings)
    project.succeed("dvc", "repro")
    return request.param, project


def test_the_exported_pair_makes_the_same_image_in_the_stock_pipeline(run):
    family, project = run
    bundle = export.Bundle.load(project.folder / "artifacts" / "bundle")
    assert bundle.family == family
    teacher = project.folder / "artifacts" / "teacher"
    project.succeed("glance", "generate", PROMPT, "--seed", str(SEED), "--out", "ours.png")
    ours = np.asarray(Image.open(project.folder / "ours.png")).astype(int)

    pipe = DiffusionPipeline.from_pretrained(teacher)
    pipe.set_progress_bar_config(disable=True)
    for phase in export.PHASES:
        pipe.load_lora_weights(bundle.folder, weight_name=f"{phase}.safetensors", adapter_name=phase)
    states = bundle.states()
    for phase, state in states.items():
        layers = {
            name for name, layer in pipe.transformer.named_modules()
            if isinstance(layer, LoraLayer) and phase in layer.lora_A
        }  # fmt: skip
        assert layers == {key.rsplit(".", 2)[0] for key in state}, "every key is used, and none is missing"

    def hand_over(pipe, step, timestep, tensors):
        if step == len(bundle.phases["slow"].steps) - 1:
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
