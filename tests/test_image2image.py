"""Images from images: the stock pipelines' strength, latents and masks in each family, and adapters chosen by level."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import (
    AutoPipelineForInpainting,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    QwenImageImg2ImgPipeline,
    ZImageImg2ImgPipeline,
)
from PIL import Image

from pipeline import backbones, cli, image_files
from pipeline.artifacts import file_digest
from pipeline.backbones.packing import pack
from pipeline.bundle import generating, importing
from pipeline.bundle.manifest import Bundle
from pipeline.bundle.source import Source, tokens
from pipeline.flow import strength as strengths
from pipeline.flow.sampling import StepPlan, adapter_at
from pipeline.flow.solvers import SOLVERS
from pipeline.flow.stepping import first_step
from tests.pairs import difference
from tests.recorded import ROOT, small_params
from tests.test_importing import diffusers_keys, write
from tests.test_loras import MODULE
from tests.tiny import make_tiny_flux, make_tiny_qwen_image, make_tiny_z_image

MAKERS = {"flux": make_tiny_flux, "qwen_image": make_tiny_qwen_image, "z_image": make_tiny_z_image}
STOCK = {"flux": FluxImg2ImgPipeline, "qwen_image": QwenImageImg2ImgPipeline, "z_image": ZImageImg2ImgPipeline}
SCALES = {"flux": 1.0, "qwen_image": 4.0, "z_image": 1.0}  # Qwen-Image with its own rescaled guidance
STEPS, HEIGHT, WIDTH = {"slow": 3, "fast": 5}, 64, 96
NAMES = ("slow",) * 3 + ("fast",) * 5
RUN = {0.3: 3, 0.6: 5, 0.7: 6, 0.9: 8}
"""How many of the 8 steps a strength runs: 8 strength, rounded up."""


@pytest.fixture(scope="module", params=MAKERS)
def made(request, tmp_path_factory):
    """A family's tiny base with a bundle of 3 + 5 steps and strong adapters, in a folder with a picture and a mask."""
    folder, family = tmp_path_factory.mktemp(request.param), request.param
    params = small_params(MAKERS[family](folder / "teacher"))
    params = replace(
        params,
        teacher=replace(params.teacher, height=HEIGHT, width=WIDTH, negative_prompt="blur"),
        student=replace(params.student, true_cfg_scale=SCALES[family]),
    )
    files = {
        phase: write(folder / f"{phase}.safetensors", diffusers_keys(MODULE[family]), seed=seed)
        for seed, phase in enumerate(STEPS)
    }
    bundle = importing.bundle(files, params, folder / "bundle", "uniform", STEPS)
    write_picture(folder / "source.png")
    write_mask(folder / "mask.png")
    return SimpleNamespace(
        family=family, folder=folder, bundle=bundle, backbone=backbones.load(folder / "teacher", "cpu")
    )


@pytest.fixture(scope="module")
def card(made):
    """What the first lines of the model card leave, and the lines that make an image from another one."""
    text = (made.bundle.folder / "README.md").read_text()
    from_noise, from_image = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    scope = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.bundle.folder)
        exec(from_noise, scope)
    ours = generating.generate(made.backbone, made.bundle, ["a red star"], [0])
    assert difference(ours[0], np.asarray(scope["image"])) <= 1
    return SimpleNamespace(scope=scope, lines=from_image)


def write_picture(path, size=(150, 110)):
    """A smooth picture with a corner of another colour, of other proportions than the bundle's images."""
    columns, rows = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    pixels = np.stack([columns, rows, 255 - columns], 2).astype(np.uint8)
    pixels[:40, :40] = (250, 250, 10)
    Image.fromarray(pixels).save(path)


def write_mask(path, size=(150, 110)):
    """A mask with grey edges: a rectangle that is no multiple of a token."""
    mask = np.zeros(size[::-1], np.uint8)
    mask[size[1] // 5 : size[1] // 2, size[0] // 5 : size[0] // 2] = 255
    mask[size[1] // 2, size[0] // 5 : size[0] // 2] = 100
    Image.fromarray(mask).save(path)


def glance(*arguments, code=0):
    done = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr


def refused(*arguments):
    """The one sentence of `glance generate` that fails."""
    return glance("generate", "a red star", *arguments, code=1)[1].splitlines()[-1].removeprefix("Error: ")


def pixels(file):
    return np.asarray(Image.open(file)).astype(int)


def latents(made, source, monkeypatch):
    """The packed latents of `generate` that are decoded, of seed 0."""
    kept, decode = [], made.backbone.decode
    with monkeypatch.context() as patch:
        patch.setattr(made.backbone, "decode", lambda x, *size: kept.append(x) or decode(x, *size))
        generating.generate(made.backbone, made.bundle, ["a red star"], [0], source=source)
    return kept[0]


def packed(images):
    """Latents of a stock pipeline: Z-Image's are not packed."""
    return pack(images) if images.ndim == 4 else images


def assert_equal(ours, stock):
    """Within 1e-5 of the largest latent."""
    assert ours.shape == stock.shape
    assert (ours - stock).abs().max() <= 1e-5 * stock.abs().max()


@pytest.mark.parametrize("strength", RUN)
def test_the_lines_of_the_card_make_the_image_of_generate(made, card, monkeypatch, strength):
    monkeypatch.chdir(made.folder)
    scope = dict(card.scope)
    exec(card.lines.replace("strength = 0.6", f"strength = {strength}"), scope)
    assert type(scope["pipe"]) is STOCK[made.family] and scope["pipe"].num_timesteps == RUN[strength]
    options = ["--bundle", "bundle", "--image", "source.png", "--strength", strength, "--out", "one.png"]
    glance("generate", "a red star", *options)
    assert difference(pixels("one.png"), np.asarray(scope["image"])) <= 2

    scope["activate"](scope["pipe"], made.bundle.u[8 - RUN[strength]])
    generator = torch.Generator().manual_seed(0)
    stock = scope["pipe"]("a red star", generator=generator, output_type="latent", **scope["options"]).images
    ours = latents(made, Source.read(made.bundle, Path("source.png"), strength), monkeypatch)
    assert_equal(ours, packed(stock))


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_a_mask_keeps_the_latents_that_the_stock_pipeline_keeps(made, card, monkeypatch, strength):
    monkeypatch.chdir(made.folder)
    source = Source.read(made.bundle, Path("source.png"), strength, Path("mask.png"))
    ours = latents(made, source, monkeypatch)

    pipe = AutoPipelineForInpainting.from_pipe(card.scope["pipe"])
    picture, mask = (Image.fromarray(tensor.numpy()) for tensor in (source.image, source.mask))
    card.scope["activate"](pipe, made.bundle.u[first_step("consistent", 8, strength)])
    stock = pipe(
        "a red star",
        image=picture,
        mask_image=mask,
        strength=strength,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **{name: value for name, value in card.scope["options"].items() if name not in ("image", "strength")},
    ).images
    assert_equal(ours, packed(stock))

    x_0, _ = made.backbone.encode_image(source.image, [0])
    anew = tokens(source.mask, made.backbone.grid(HEIGHT, WIDTH), ours.shape[-1]).expand_as(ours)
    assert torch.equal(ours[~anew], x_0[~anew]), "outside the mask are the picture's latents, to the bit"
    assert 0 < anew.float().mean() < 0.5 and (ours[anew] - x_0[anew]).abs().min() > 0


def test_the_level_chooses_the_adapter(made, monkeypatch):
    """At strength .6 only the fast adapter acts, and the slow one gives another image."""
    monkeypatch.chdir(made.folder)
    source = Source.read(made.bundle, Path("source.png"), 0.6)
    ours = generating.generate(made.backbone, made.bundle, ["a red star"], [0], source=source)[0]
    slow, fast = made.bundle.states().values()
    for states, same in (({"slow": fast, "fast": fast}, True), ({"slow": slow, "fast": slow}, False)):
        with monkeypatch.context() as patch:
            patch.setattr(Bundle, "states", lambda self, states=states: states)
            other = generating.generate(made.backbone, made.bundle, ["a red star"], [0], source=source)[0]
        assert bool(difference(ours, other) == 0) is same


def test_the_plan_of_a_strength_is_the_end_of_the_whole_plan(made):
    whole = made.bundle.plan(made.backbone)
    sigmas = made.backbone.schedule(HEIGHT, WIDTH).sigmas(made.bundle.u)
    assert torch.equal(whole.sigmas, sigmas) and whole.adapters == NAMES and whole.moves is None
    for strength, steps in RUN.items():
        plan = made.bundle.plan(made.backbone, strength)
        assert plan.adapters == NAMES[8 - steps :] and torch.equal(plan.sigmas, whole.sigmas[8 - steps :])


def test_an_image_does_not_depend_on_its_batch(made, monkeypatch):
    monkeypatch.chdir(made.folder)
    image = Source.read(made.bundle, Path("source.png"), 0.6).image
    x_0, noise = made.backbone.encode_image(image, [5, 6, 7])
    for row, seed in enumerate([5, 6, 7]):
        alone = made.backbone.encode_image(image, [seed])
        assert torch.equal(x_0[row], alone[0][0]) and torch.equal(noise[row], alone[1][0])
    assert not torch.equal(x_0[0], x_0[1]), "each seed draws its own latents"


def test_with_little_memory_the_image_is_the_same(made, monkeypatch):
    """With `offload` the autoencoder, the text encoders and the transformer take turns."""
    monkeypatch.chdir(made.folder)
    source = Source.read(made.bundle, Path("source.png"), 0.6, Path("mask.png"))
    small = backbones.load("teacher", "cpu", offload=True)
    whole, parts = (
        generating.generate(backbone, made.bundle, ["a star"] * 2, [0, 1], source=source)
        for backbone in (made.backbone, small)
    )
    assert difference(whole, parts) <= 1


@pytest.mark.parametrize("solver", [solver for solver in SOLVERS if solver != "euler"])
def test_the_first_step_from_an_image_has_no_step_before_it(made, monkeypatch, solver):
    """So where one step is left, every solver takes Euler's; where more are left, they differ."""
    monkeypatch.chdir(made.folder)
    images = {}
    for strength in (0.1, 0.6):
        source = Source.read(made.bundle, Path("source.png"), strength)
        for name in ("euler", solver):
            bundle = replace(made.bundle, solver=name)
            images[strength, name] = generating.generate(made.backbone, bundle, ["a star"], [0], source=source)
    assert difference(images[0.1, "euler"], images[0.1, solver]) <= 1
    assert difference(images[0.6, "euler"], images[0.6, solver]) > 1


def test_weights_of_16_bits(made, monkeypatch):
    monkeypatch.chdir(made.folder)
    backbone = backbones.load(replace(made.bundle, dtype="bf16").base(), "cpu", ("vae",))
    image = Source.read(made.bundle, Path("source.png"), 0.6).image
    for half, full in zip(backbone.encode_image(image, [0]), made.backbone.encode_image(image, [0]), strict=True):
        assert half.dtype == backbone.latent_dtype and half.shape == full.shape


def test_a_strength_leaves_as_many_steps_as_in_the_stock_pipelines():
    scheduler = FlowMatchEulerDiscreteScheduler()
    for steps in range(1, 13):
        scheduler.set_timesteps(steps)
        for strength in [i / 60 for i in range(1, 61)]:
            for pipeline in STOCK.values():
                timesteps, left = pipeline.get_timesteps(SimpleNamespace(scheduler=scheduler), steps, strength, None)
                assert len(timesteps) == left == steps - strengths.first_step(steps, strength)


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.5, float("nan"), float("inf")])
def test_a_strength_out_of_its_range_is_refused(strength):
    with pytest.raises(ValueError, match=f"strength must be above 0 and at most 1, got {strength:g}"):
        strengths.first_step(8, strength)


def test_a_strength_that_leaves_no_step_is_refused():
    with pytest.raises(ValueError, match="strength must leave one of the 8 steps, got 1e-20"):
        strengths.first_step(8, 1e-20)
    assert strengths.first_step(8, 1e-9) == 7


@pytest.mark.parametrize(
    ("level", "name"), [(1.0, "a"), (0.76, "a"), (0.75, "b"), (0.5, "b"), (0.25, "c"), (0.01, "c")]
)
def test_above_a_handoff_the_phase_before_it_acts(level, name):
    assert adapter_at(level, {"a": 1.0, "b": 0.75, "c": 0.25}) == name
    assert adapter_at(level, {"alone": 1.0}) == "alone"


def test_the_end_of_a_plan_keeps_all_of_its_fields():
    sigmas, moves = torch.tensor([1.0, 0.6, 0.2, 0.0]), torch.tensor([-0.5, -0.4, -0.1])
    plan = StepPlan(sigmas, ("a", "b", None), moves, guidance=("asked", "off", "reused")).tail(1)
    assert plan.sigmas.tolist() == sigmas[1:].tolist() and plan.adapters == ("b", None)
    assert plan.d_sigmas == moves[1:].tolist() and plan.guidance == ("off", "reused") and plan.solver == "euler"


def test_the_official_path_takes_no_image():
    with pytest.raises(ValueError, match="an image as the start needs a bundle with the path consistent, got official"):
        first_step("official", 10, 0.6)


def test_a_picture_keeps_its_proportions_and_its_middle():
    wide = np.arange(10 * 40 * 3, dtype=np.uint8).reshape(10, 40, 3)
    np.testing.assert_array_equal(image_files.covering(Image.fromarray(wide), 10, 20, "RGB"), wide[:, 10:30])
    halves = np.repeat(np.repeat(np.array([[0, 200, 100, 0]], np.uint8), 10, axis=0), 10, axis=1)
    small = image_files.covering(Image.fromarray(halves), 4, 8, "L")
    assert small.shape == (4, 8) and (small[:, 1:3] > 180).all() and (abs(small[:, 5:7].astype(int) - 100) < 20).all()


def test_a_picture_is_turned_as_its_exif_says(tmp_path):
    turned = Image.new("RGB", (4, 2))
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter turn
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert image_files.picture(tmp_path / "turned.jpg", "--image").size == (2, 4)


def test_the_lines_of_the_page_make_the_image_of_generate(flux, tmp_path, monkeypatch):
    """The lines of docs/pairs.md, on a teacher without embedded guidance as the shipped one."""
    section = (
        (ROOT / "docs/pairs.md").read_text(encoding="utf-8").partition("## From an image")[2].partition("\n## ")[0]
    )
    (lines,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts").mkdir()
    Path("artifacts/teacher").symlink_to(flux / "teacher")
    Path("my-pair").symlink_to(flux / "consistent")
    write_picture(tmp_path / "photo.png")
    scope = {}
    exec(lines, scope)
    options = ["--bundle", "my-pair", "--image", "photo.png", "--seed", 7, "--out", "one.png"]
    glance("generate", "a blue star on black", *options)
    assert difference(pixels("one.png"), np.asarray(scope["image"])) <= 2


# --- the command, on FLUX's classes


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    params = small_params(make_tiny_flux(folder / "teacher"))
    files = {phase: write(folder / f"{phase}.safetensors", diffusers_keys(MODULE["flux"])) for phase in STEPS}
    for path in ("consistent", "official"):
        importing.bundle(files, params, folder / path, "uniform", STEPS, path=path)
    write_picture(folder / "source.png")
    write_mask(folder / "mask.png")
    write_mask(folder / "small.png", (30, 40))
    Image.new("L", (150, 110)).save(folder / "black.png")
    (folder / "text.png").write_text("no picture")
    (folder / "cut.png").write_bytes((folder / "source.png").read_bytes()[:300])
    return folder


@pytest.fixture
def here(flux, monkeypatch):
    monkeypatch.chdir(flux)
    return flux


def from_image(*arguments, out):
    options = ["a red star", "two stars", "--bundle", "consistent", "--image", "source.png", "--out", out]
    return glance("generate", *options, *arguments)


def test_a_picture_says_which_image_it_was_made_from(here):
    from_image("--mask", "mask.png", "--strength", 0.3, out="said")
    texts = Image.open("said/000-a-red-star.png").text
    said = json.loads(texts["glance"])
    assert said["strength"] == 0.3 and said["steps"] == 8 and said["nfe"] == 3
    assert said["image"] == file_digest("source.png") and said["mask"] == file_digest("mask.png")
    assert texts["parameters"].endswith(", Denoising strength: 0.3")
    from_image(out="plain")
    said = json.loads(Image.open("plain/000-a-red-star.png").text["glance"])
    assert said["strength"] == 0.6 and "mask" not in said


def test_resume_keeps_pictures_of_the_same_image_strength_and_mask_alone(here):
    from_image(out="resumed")
    first = Path("resumed/001-two-stars.png").read_bytes()
    Path("resumed/001-two-stars.png").unlink()
    assert from_image("--resume", out="resumed")[1].endswith("1 images kept, 1 made\n")
    assert Path("resumed/001-two-stars.png").read_bytes() == first
    for others in (["--strength", 0.5], ["--mask", "mask.png"], ["--image", "mask.png"]):
        assert from_image("--resume", *others, out="resumed")[1].endswith("0 images kept, 2 made\n")
    glance("generate", "a red star", "two stars", "--bundle", "consistent", "--out", "resumed")
    assert from_image("--resume", out="resumed")[1].endswith("0 images kept, 2 made\n")


def test_the_smaller_the_strength_the_nearer_the_image(here):
    bundle, backbone = Bundle.load("consistent"), backbones.load("teacher", "cpu")
    source = Source.read(bundle, Path("source.png"), 1.0)
    x_0, _ = backbone.encode_image(source.image, [0])
    distances = []
    for strength in (0.1, 0.5, 0.8):
        plan = bundle.plan(backbone, strength)
        x, _ = replace(source, strength=strength).enter(backbone, [0], float(plan.sigmas[0]))
        distances.append((x - x_0).norm().item())
    assert distances == sorted(distances)


def test_a_strength_that_starts_at_noise_says_so(here):
    said = "--strength above 0.875 runs all 8 steps, which start at noise alone: --image does not change the picture\n"
    assert said in from_image("--strength", 0.9, out="noise")[1]
    from_image("--strength", 0.9, "--image", "mask.png", out="other")
    assert difference(pixels("noise/000-a-red-star.png"), pixels("other/000-a-red-star.png")) == 0
    assert "noise alone" not in from_image("--strength", 0.875, out="noise")[1]
    assert "noise alone" not in from_image("--strength", 1, "--mask", "mask.png", out="noise")[1]


NO_PICTURE = "must be a picture that Pillow reads, got"
REFUSED = [
    (["--strength", 1.5], "--strength must be above 0 and at most 1, got 1.5"),
    (["--strength", 0], "--strength must be above 0 and at most 1, got 0"),
    (
        ["--image", "nowhere.png"],
        f"--image {NO_PICTURE} nowhere.png: No such file or directory",
    ),
    (["--image", "text.png"], f"--image {NO_PICTURE} text.png: cannot identify image file"),
    (["--image", "cut.png"], f"--image {NO_PICTURE} cut.png: image file is truncated"),
    (["--image", "teacher"], f"--image {NO_PICTURE} teacher: Is a directory"),
    (["--mask", "text.png"], f"--mask {NO_PICTURE} text.png"),
    (["--mask", "small.png"], "--mask must have the size of --image, 150 x 110, got 30 x 40"),
    (["--mask", "black.png"], "--mask must be white where the image is made anew, and black.png has no white pixel"),
    (["--bundle", "official"], "an image as the start needs a bundle with the path consistent, got official"),
    (["--out", "source.png"], "--out must not write over source.png, which the run starts from"),
    (["--image", "mask.png", "--mask", "mask.png", "--out", "mask.png"], "--out must not write over mask.png"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_cannot_be_used_is_refused_before_the_model_is_loaded(here, monkeypatch, arguments, message):
    monkeypatch.setattr(backbones, "load", None)
    before = Path("source.png").read_bytes()
    said = refused("--bundle", "consistent", "--image", "source.png", "--out", "refused", *arguments)
    assert said.startswith(message)
    assert not Path("refused").exists() and Path("source.png").read_bytes() == before


@pytest.mark.parametrize("option", [("--strength", 0.5), ("--mask", "mask.png")])
def test_an_option_without_an_image_is_refused(here, option):
    assert refused("--bundle", "consistent", *option) == f"{option[0]} needs --image, got {option[1]}"
