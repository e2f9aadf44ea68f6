"""The cost model gives back what made its points, its counts are torch's, and the page is made of its figures alone."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from measurements import cost, cost_model, cost_page, gpu
from pipeline import adapters, backbones, params
from pipeline.backbones import base
from pipeline.training.velocities import with_adapter
from tests.tiny import make_tiny_flux, make_tiny_qwen_image

MADE = ((1, 1e8), (50, 2e9), (20, 9e12), (20, 4e12))
"""Calls, and FLOPs of all together."""
OWN, OTHER = {"pixels": 64}, {"pixels": 128}
FIGURES = {
    "recording": [
        {**OWN, "steps": 10, "trajectories": 64, "forwards": 1280, "encode_s": 9, "seconds": 9},
        {**OWN, "steps": 25, "trajectories": 64, "forwards": 3200, "encode_s": 0.64, "seconds": 3.2},
        {**OTHER, "steps": 50, "trajectories": 64, "forwards": 6400, "encode_s": 9, "seconds": 99},
    ],
    "images": [
        {**OWN, "nfe": 100, "batch": 1, "flops": 100, "seconds": 9},
        {**OWN, "nfe": 8, "batch": 16, "flops": 128, "seconds": 9},
        {**OWN, "nfe": 100, "batch": 16, "flops": 1600, "seconds": 3.2},
        {**OTHER, "nfe": 100, "batch": 16, "flops": 6400, "seconds": 99},
    ],
    "training": [
        {**OWN, "batch": 32, "train_steps": 10, "seconds": 9},
        {**OWN, "batch": 32, "train_steps": 20, "seconds": 2},
        {**OWN, "batch": 8, "train_steps": 40, "seconds": 9},
        {**OTHER, "batch": 32, "train_steps": 40, "seconds": 99},
    ],
    "around": {"encode": 0.01, "decode": 0.02},
    "shipped": OWN
    | {"trajectories": 1000, "recorded": 50, "teacher": 100, "batch": 32, "train_steps": 600}
    | {"evaluation": 10_000, "images": 500},
}
"""The longest runs at the shipped sizes take 1 ms a recorded forward, 2 ms an image's and 100 ms a train step."""


@pytest.fixture(scope="module")
def shipped():
    return params.load(gpu.ROOT / "params.yaml")


def with_recorded(shipped, steps):
    return replace(shipped, trajectories=replace(shipped.trajectories, steps=steps))


def test_a_fit_gives_back_overhead_and_rate():
    points = [{"calls": c, "flops": f, "seconds": 0.003 * c + f / 5e10} for c, f in MADE]
    found = cost_model.fit(points)
    assert found.overhead == pytest.approx(0.003) and found.rate == pytest.approx(5e10) and found.worst < 1e-6
    points[2]["seconds"] *= 1.2
    assert 0.05 < cost_model.fit(points).worst < 0.2


def test_a_proportion_is_exact_on_a_line_and_says_how_far_a_point_lies_off():
    assert cost_model.proportion([1, 2, 8], [0.5, 1, 4]) == pytest.approx((0.5, 0))
    k, worst = cost_model.proportion([1, 1], [1.0, 1.1])
    assert 1 < k < 1.1 and worst == pytest.approx(max(1.1 / k - 1, 1 - 1 / k))


def test_after_the_break_even_images_the_saving_has_paid():
    assert cost_model.break_even(280, 0.8, 0.1) == pytest.approx(400)
    with pytest.raises(ValueError, match="must cost less than a teacher's 0.1, got 0.1"):
        cost_model.break_even(1, 0.1, 0.1)


@pytest.mark.parametrize("make", [make_tiny_flux, make_tiny_qwen_image])
def test_a_forward_counts_what_torch_counts(tmp_path, make):
    backbone = backbones.load(make(tmp_path), "cpu", ("text", "transformer"))
    prompted = backbone.encode(["a red star on black"], 12)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted, torch.inference_mode():
        grid = backbone.grid(64, 32)
        velocity = base.guided(backbone, prompted, None, guidance_scale=3.5, true_cfg_scale=1, grid=grid)
        velocity(backbone.noise([0], 64, 32), torch.ones(1))
    mask = prompted.get("prompt_embeds_mask")
    if mask is not None:  # the forward reads no further
        prompted = {name: tensor[:, : int(mask.sum())] for name, tensor in prompted.items()}
    assert cost_model.count(backbone, prompted, 64, 32).forward == pytest.approx(counted.get_total_flops(), rel=0.01)


@pytest.mark.parametrize(("how", "expected"), [("merged", "merged_step"), ("checkpointed", "checkpointed_step")])
def test_a_train_step_counts_what_torch_counts(how, expected, tmp_path):
    gpu.write_teacher(gpu.MODELS["flux-dev"], tmp_path, True, torch.device("cpu"))
    backbone = backbones.load(tmp_path, "cpu", ("transformer",))
    prompted = gpu.conditioning(gpu.MODELS["flux-dev"], 1)
    expected = getattr(cost_model.count(backbone, prompted, 128, 128), expected)
    adapters.add(backbone, "slow", 4, 4, "all" if how == "merged" else "attention", 0)
    x, model = backbone.noise([0], 128, 128), backbone.velocity
    if how == "checkpointed":
        backbone.transformer.enable_gradient_checkpointing()
    else:
        model = with_adapter(backbone, "slow")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        model(x, torch.ones(1), prompted, 3.5, (8, 8)).sum().backward()
    # the first of so few blocks needs no gradient of its input
    assert expected == pytest.approx(counted.get_total_flops(), rel=0.15)


def test_the_page_is_what_the_command_makes_of_the_committed_figures():
    figures = json.loads((gpu.DOCS / "cost.json").read_text())
    assert (gpu.DOCS / "cost.md").read_text(encoding="utf-8") == cost_page.page(figures), (
        "run `python -m measurements.cost` and commit what it writes"
    )


def test_the_same_figures_draw_the_same_plot(tmp_path):
    figures = json.loads((gpu.DOCS / "cost.json").read_text())
    for name in ("a.png", "b.png"):
        cost_page.draw(figures, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_recordings_images_and_train_steps_have_a_line_each():
    made = {"recording": (0.003, 9e10), "images": (0.002, 5e10), "training": (0.05, 7e10)}
    figures = {
        name: [{"calls": c, "flops": f, "seconds": overhead * c + f / rate} for c, f in MADE]
        for name, (overhead, rate) in made.items()
    }
    found = {name: (of.overhead, of.rate) for name, of in cost_page.fits(figures).items()}
    assert found == {name: pytest.approx(line) for name, line in made.items()}


def test_the_distillation_is_what_its_parts_cost():
    assert cost_page.costs(FIGURES) == pytest.approx(
        {
            "recording": 1000 * (50 * 0.001 + 0.01),
            "training": 600 * 0.1,
            "evaluation": 10_000 * 0.002 + 500 * 0.03,
            "distillation": 60 + 60,
        }
    )


@pytest.mark.parametrize("steps", [50, 25])
def test_fewer_recorded_steps_make_the_recording_cheaper_and_no_image(tmp_path, shipped, steps):
    backbone = backbones.load(make_tiny_flux(tmp_path), "cpu", ("transformer",))
    work = cost_model.work(backbone, with_recorded(shipped, steps))
    whole = shipped.teacher.steps * 2  # guided
    assert (work["recorded"], work["teacher"]) == (steps * 2, whole)
    assert work["evaluation"] == cost_model.work(backbone, with_recorded(shipped, 50))["evaluation"]


@pytest.mark.parametrize("steps", [24, 12])
def test_the_longest_recording_is_as_long_as_the_shipped_one(tmp_path, shipped, steps):
    asked = with_recorded(shipped, steps)
    small = replace(asked, teacher=replace(asked.teacher, path=str(make_tiny_flux(tmp_path / "teacher")), steps=24))
    small = replace(small, trajectories=replace(small.trajectories, shard_size=2))
    bench = cost.Bench(small, tmp_path, torch.device("cpu"), quick=False)
    rows, _ = bench.recording()
    longest = max(rows, key=lambda row: row["steps"])
    assert longest["steps"] == steps
    assert longest["forwards"] == longest["trajectories"] * cost_model.work(bench.backbone, small)["recorded"]


def test_a_published_model_records_its_recorded_forwards_of_each_prompt():
    model = {"parameters": 1e9, "prompts": 16, "forward": 1e12, "train_step": 3e12, "train_steps": 480}
    model |= {"recorded": 50, "teacher": 100, "student": 8, "evaluation": 1000, "train_forwards": 1}
    recordings = [row[2] for row in cost_page.predictions("made up", model)]
    assert recordings == [50 * prompts for prompts in (cost_page.PAPER[0], 16, cost_page.MANY_PROMPTS)]
