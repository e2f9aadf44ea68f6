"""Published rivals as arms: the same latents as the stock pipeline with the rival's LoRA, levels and guidance."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler
from diffusers.schedulers import scheduling_flow_match_lcm

from pipeline import adapters, artifacts, backbones, rival_params
from pipeline.backbones.packing import pack
from pipeline.evaluation import published
from pipeline.evaluation.images import ImageSet
from pipeline.evaluation.sampler import Sampler
from pipeline.evaluation.samples import Shard
from pipeline.evaluation.weights import ArmWeights
from pipeline.flow.schedule import Schedule
from pipeline.flow.solvers import noise_seed
from tests.evaluation_case import draw, make_artifacts, read, small_params
from tests.lora_layouts import build
from tests.tiny import HEIGHT, MAX_SEQUENCE_LENGTH, WIDTH, make_tiny_flux, make_tiny_qwen_image

PROMPTS = ["a red star on black", "two circles"]
SEEDS = [7, 1000]
ENTRY = {
    "scale": 0.2,  # the layouts' matrices are of order 1
    "steps": 4,
    "shift": None,
    "sampler": "euler",
    "true_cfg_scale": 1.0,
    "guidance_scale": None,
    "license": "Apache-2.0",
}
LIGHTNING = {
    "use_dynamic_shifting": True,
    "base_shift": math.log(3),
    "max_shift": math.log(3),
    "shift_terminal": None,
}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    return {
        "qwen_image": make_tiny_qwen_image(folder / "qwen_image"),
        "flux": make_tiny_flux(folder / "flux", guidance_embeds=True),
    }


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rivals").mkdir()
    return tmp_path


def write(path, family, layout, name, seed=0):
    """A LoRA file of a layout under rivals/, for every layer of a teacher."""
    shapes = adapters.linear_shapes(backbones.load(path, "cpu", ()).skeleton())
    made = build(layout, family, shapes)
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in made.tensors.items():
        if not key.endswith("alpha"):
            made.tensors[key] = 0.3 * torch.randn(tensor.shape, generator=generator)
    return made.write(Path("rivals"), name)


def our_latents(path, entry, prompts=PROMPTS, teacher_guidance=3.5):
    """The latents of the rival's arm."""
    backbone = backbones.load(path, "cpu")
    rivals = rival_params.published({"theirs": ENTRY | entry}, None)
    arm = published.arm("theirs", rivals["theirs"], backbone.schedule(HEIGHT, WIDTH))
    states = {name: published.read(file, scale, backbone) for name, (file, scale) in published.files(rivals).items()}
    weights = ArmWeights(backbone.transformer, states)
    sampler = Sampler(backbone, weights, HEIGHT, WIDTH, MAX_SEQUENCE_LENGTH, teacher_guidance, " ")
    weights.hold(arm.plan.adapters)
    return sampler.denoise(arm, sampler.encode(arm, prompts), SEEDS)


def stock(path, *files, scale=0.2):
    pipe = DiffusionPipeline.from_pretrained(path)
    pipe.set_progress_bar_config(disable=True)
    for name, file in zip("ab", files, strict=False):
        pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
    pipe.set_adapters("a", scale)
    return pipe


def stock_latents(pipe, steps=4, prompts=PROMPTS, **options):
    latents = pipe(
        list(prompts),
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=steps,
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="latent",
        **options,
    ).images
    return pack(latents) if latents.ndim == 4 else latents


def assert_same(ours, theirs, other):
    """Equal latents, which another setting does not give."""
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert (ours - other).abs().max() > 0.05


@pytest.mark.parametrize("steps", [4, 8])
def test_lightning_is_the_stock_pipeline_with_its_lora_and_its_scheduler(teachers, here, steps):
    path = teachers["qwen_image"]
    file = write(path, "qwen_image", "Lightning", "lightning.safetensors")
    pipe = stock(path, file)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(pipe.scheduler.config) | LIGHTNING)
    theirs = stock_latents(pipe, steps, true_cfg_scale=1.0)
    ours = our_latents(path, {"weights": file.name, "steps": steps, "shift": 3.0, "terminal": None})
    assert_same(ours, theirs, our_latents(path, {"weights": file.name, "steps": steps}))


def test_the_stock_levels_and_the_terminal_of_the_base(teachers, here):
    """Qwen-Image-Distill-LoRA: DiffSynth's keys, the base's own scheduler; guided too, to see the negative prompt."""
    path = teachers["qwen_image"]
    file = write(path, "qwen_image", "DiffSynth", "distill.safetensors")
    theirs = stock_latents(stock(path, file), true_cfg_scale=2.5, negative_prompt=[" "] * len(PROMPTS))
    ours = our_latents(path, {"weights": file.name, "true_cfg_scale": 2.5})
    assert_same(ours, theirs, our_latents(path, {"weights": file.name}))


def test_a_rival_of_flux_has_a_scale_and_an_embedded_guidance_of_its_own(teachers, here):
    path = teachers["flux"]
    file = write(path, "flux", "diffusers", "hyper.safetensors")
    theirs = stock_latents(stock(path, file, scale=0.125), guidance_scale=7.0)
    entry = {"weights": file.name, "scale": 0.125, "guidance_scale": 7.0}
    assert_same(our_latents(path, entry), theirs, our_latents(path, entry | {"scale": 0.3}))
    followed = our_latents(path, entry | {"guidance_scale": None}, teacher_guidance=7.0)
    assert torch.equal(followed, our_latents(path, entry)), "null is the teacher's"
    assert not torch.equal(followed, our_latents(path, entry | {"guidance_scale": None}))


def test_given_levels_are_told_to_the_model_as_they_are(teachers, here):
    path = teachers["flux"]
    file = write(path, "flux", "diffusers", "two.safetensors")
    pipe = stock(path, file)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    theirs = stock_latents(pipe, 2, sigmas=[1.0, 0.4], guidance_scale=3.5)
    ours = our_latents(path, {"weights": file.name, "steps": 2, "sigmas": [1, 0.4]})
    assert_same(ours, theirs, our_latents(path, {"weights": file.name, "steps": 2}))


def test_experts_take_turns(teachers, here):
    path = teachers["flux"]
    files = [write(path, "flux", "diffusers", f"{i}.safetensors", seed=i) for i in range(2)]
    pipe = stock(path, *files)

    def switch(pipe, step, timestep, values):
        if step == 0:
            pipe.set_adapters("b", 0.2)
        return {}

    theirs = stock_latents(pipe, guidance_scale=3.5, callback_on_step_end=switch)
    parts = [{"weights": files[0].name, "steps": [0]}, {"weights": files[1].name, "steps": [3, 1, 2]}]
    swapped = [{"weights": files[1].name, "steps": [0]}, {"weights": files[0].name, "steps": [3, 1, 2]}]
    assert_same(our_latents(path, {"weights": parts}), theirs, our_latents(path, {"weights": swapped}))


def test_renoise_is_the_step_of_diffusers_lcm_scheduler_on_the_same_noise(teachers, here, monkeypatch):
    path = teachers["qwen_image"]
    file = write(path, "qwen_image", "Lightning", "lcm.safetensors")
    entry = {"weights": file.name, "shift": 3.0, "terminal": None}
    backbone = backbones.load(path, "cpu")
    scheduler = FlowMatchLCMScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.9, 0.75, 0.5])
    drawn = (backbone.noise([noise_seed(seed, step) for seed in SEEDS], HEIGHT, WIDTH) for step in range(4))
    monkeypatch.setattr(scheduling_flow_match_lcm, "randn_tensor", lambda *shape, **how: next(drawn))
    pipe = stock(path, file)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    backbone.transformer.load_state_dict(pipe.transformer.state_dict())
    conditioning, grid = backbone.encode(PROMPTS, MAX_SEQUENCE_LENGTH), backbone.grid(HEIGHT, WIDTH)
    x = backbone.noise(SEEDS, HEIGHT, WIDTH)
    with torch.inference_mode():
        for timestep, (sigma, _) in zip(scheduler.timesteps, pairwise(scheduler.sigmas.tolist()), strict=True):
            v = backbone.velocity(x, x.new_full((len(x),), sigma), conditioning, 3.5, grid)
            x = scheduler.step(v, timestep, x).prev_sample
    assert_same(our_latents(path, entry | {"sampler": "renoise"}), x, our_latents(path, entry))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A project with the artifacts of an evaluation and two rivals' files."""
    folder = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        settings = small_params()
        make_artifacts(settings)
        Path("rivals").mkdir()
        for i, name in enumerate(("one.safetensors", "two.safetensors")):
            write(settings.teacher.path, "flux", "diffusers", name, seed=i)
    return folder


@pytest.fixture
def project(evaluated, monkeypatch):
    monkeypatch.chdir(evaluated)
    return small_params()


def with_rivals(settings, **entries):
    return replace(settings, rivals={name: ENTRY | entry for name, entry in entries.items()})


EXPERTS = [{"weights": "one.safetensors", "steps": [0, 1]}, {"weights": "two.safetensors", "steps": [2, 3]}]


def test_each_entry_is_an_arm_of_the_evaluation(project, tmp_path):
    settings = with_rivals(
        project,
        fast_one={"weights": "one.safetensors", "scale": 0.125, "true_cfg_scale": 2.0},
        pair={"weights": EXPERTS, "sampler": "renoise", "guidance_scale": 1.5},
        other={"weights": "one.safetensors", "base": "Qwen/Qwen-Image"},
        elsewhere={},
    )
    settings = replace(
        settings,
        rivals={**settings.rivals, "elsewhere": {"images": "there"}},
        teacher=replace(settings.teacher, hub="own/model@main"),
    )
    given = read(settings)
    assert [arm.name for arm in given.arms[-2:]] == ["fast_one", "pair"], "not for this base, or made elsewhere"
    one, pair = given.arms[-2:]
    assert (one.title, one.steps, one.nfe, one.guidance_scale) == ("Fast one", 4, 8, None)
    assert one.question == "Published weights: one.safetensors. Licence: Apache-2.0."
    assert one.plan.adapters == ("rivals.fast_one.0",) * 4 and one.plan.solver == "euler"
    assert pair.plan.adapters == ("rivals.pair.0",) * 2 + ("rivals.pair.1",) * 2 and pair.plan.solver == "renoise"
    assert (pair.true_cfg_scale, pair.guidance_scale) == (1.0, 1.5)
    digest = artifacts.file_digest(Path("rivals/one.safetensors"))
    assert given.adapter_digests["rivals.fast_one.0"] == f"{digest} x 0.125"
    assert given.adapter_digests["rivals.pair.0"] == f"{digest} x 0.2"
    draw(given, tmp_path / "images")
    shown = ImageSet.load(tmp_path / "images").arms[-1]
    assert (shown.name, shown.title, shown.steps, shown.nfe) == ("pair", "Pair", 4, 4)
    assert shown.question == "Published weights: one.safetensors, two.safetensors. Licence: Apache-2.0."


def test_the_model_makes_images_of_a_rival(project):
    given = read(with_rivals(project, one={"weights": "one.safetensors"}, two={"weights": "two.safetensors"}))
    shard = Shard(("a red star on black",), (3,))
    images = [given.sampler.images(arm, shard) for arm in given.arms[-2:]]
    assert images[0].shape == (1, 64, 64, 3) and (images[0] != images[1]).any()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"one": {"weights": "on.safetensors"}},
            "the LoRA rivals/on.safetensors is missing: copy it to rivals/on.safe",
        ),
        (
            {"one": {"weights": "a/b@c/on.safetensors"}},
            "the LoRA rivals/a/b@c/on.safetensors is missing: run `glance fetch`, which gets what rivals lists",
        ),
        ({"single": {"weights": "one.safetensors"}}, "rivals must have names that no other arm has, got single"),
    ],
)
def test_an_entry_that_cannot_be_an_arm_is_one_sentence(project, entries, message):
    with pytest.raises(ValueError, match=message):
        read(with_rivals(project, **entries))


def test_weights_of_another_base_are_one_sentence(project, teachers):
    write(teachers["qwen_image"], "qwen_image", "Lightning", "foreign.safetensors")
    with pytest.raises(ValueError, match="rivals/foreign.safetensors changes .*, which the transformer of .* does not"):
        read(with_rivals(project, one={"weights": "foreign.safetensors"}))


def test_a_single_step_cannot_be_stretched_as_the_teachers_last_is(project):
    rival = with_rivals(project, one={"weights": "one.safetensors", "steps": 1}).published["one"]
    assert published.arm("one", rival, Schedule(mu=0.5)).plan.sigmas.tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="rivals.one: stretch_terminal needs a last sigma below 1, got 1.0"):
        published.arm("one", rival, Schedule(mu=0.5, shift_terminal=0.02))
