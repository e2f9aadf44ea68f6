"""The cost model gives back what made its points, its counts are torch's, and the page is made of its figures alone."""

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import cost_model, cost_page, gpu
from pipeline import adapters, backbones
from pipeline.backbones import base
from pipeline.training import _with_adapter
from tests.tiny import make_tiny_flux, make_tiny_qwen_image

MADE = ((1, 1e8), (50, 2e9), (20, 9e12), (20, 4e12))
"""Calls, and FLOPs of all together."""


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
        x, velocity = backbone.noise([0], 64, 32), base.field(backbone, prompted, 3.5, backbone.grid(64, 32))
        velocity(x, torch.ones(1))
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
        model = _with_adapter(backbone, "slow")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        model(x, torch.ones(1), prompted, 3.5, (8, 8)).sum().backward()
    # the first of so few blocks needs no gradient of its input
    assert expected == pytest.approx(counted.get_total_flops(), rel=0.15)


def test_the_page_is_what_the_command_makes_of_the_committed_figures(tmp_path):
    figures = json.loads((gpu.DOCS / "cost.json").read_text())
    assert (gpu.DOCS / "cost.md").read_text(encoding="utf-8") == cost_page.page(figures), (
        "run `python -m benchmarks.cost` and commit what it writes"
    )
    for name in ("a.png", "b.png"):
        cost_page.draw(figures, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_distillation_is_what_its_parts_cost():
    figures = json.loads((gpu.DOCS / "cost.json").read_text())
    spent, shipped = cost_page.costs(figures), figures["shipped"]
    doubled = figures | {"shipped": shipped | {"train_steps": 2 * shipped["train_steps"]}}
    assert cost_page.costs(doubled)["distillation"] - spent["distillation"] == pytest.approx(spent["training"])
    assert spent["distillation"] == pytest.approx(spent["recording"] + spent["training"])
