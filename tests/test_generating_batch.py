"""One batch of images: what stock diffusers makes of the same pair, fused or not, on either sampling path."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline import backbones
from pipeline.bundle.generating import generate
from pipeline.flow.schedule import base_levels
from pipeline.partition import PHASES
from tests.pairs import PROMPTS, SEEDS, difference, make_pair, pixels, stock, stock_images, write_adapter


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.mark.parametrize("targets", ["attention", "all"])
def test_stock_diffusers_makes_the_images_of_generate(pair, tmp_path, targets):
    recorded, folders = pair.recorded, {phase: tmp_path / phase for phase in PHASES}
    for i, phase in enumerate(PHASES):
        write_adapter(recorded.backbone(), folders[phase], seed=i, targets=targets)
    bundle = pair.written(tmp_path / "bundle", trained=folders)
    images = generate(recorded.backbone(backbones.PARTS), bundle, PROMPTS, SEEDS)
    pipe = stock(recorded, bundle.folder)
    assert difference(images, pixels(stock_images(pipe, bundle))) <= 1
    assert images.float().std() > 1

    swapped = pair.written(tmp_path / "swapped", trained={"slow": folders["fast"], "fast": folders["slow"]})
    other = generate(recorded.backbone(backbones.PARTS), swapped, PROMPTS, SEEDS)
    assert difference(images, other) > 1


def test_a_guided_student_is_guided_in_both(pair, tmp_path):
    recorded = pair.recorded
    student = replace(recorded.params.student, true_cfg_scale=3.0)
    teacher = replace(recorded.params.teacher, negative_prompt="a green ring")
    bundle = pair.written(tmp_path, teacher=teacher, student=student)
    images = generate(recorded.backbone(backbones.PARTS), bundle, PROMPTS, SEEDS)
    expected = stock_images(
        stock(recorded, tmp_path), bundle, true_cfg_scale=3.0, negative_prompt=["a green ring"] * len(PROMPTS)
    )
    assert difference(images, pixels(expected)) <= 1
    unguided = replace(bundle, guidance=replace(bundle.guidance, student_true_cfg_scale=1.0))
    assert difference(images, generate(recorded.backbone(backbones.PARTS), unguided, PROMPTS, SEEDS)) > 1


def test_generating_twice_fused_or_not_gives_the_same_images(pair):
    backbone, bundle = pair.recorded.backbone(backbones.PARTS), pair.bundle
    first, low_rank, again = (generate(backbone, bundle, PROMPTS, SEEDS, fused=fused) for fused in (True, False, True))
    assert torch.equal(first, again)
    assert difference(first, low_rank) <= 1
    assert first.shape == (2, 64, 64, 3) and first.dtype == torch.uint8
    alone = generate(backbone, bundle, PROMPTS[1:], SEEDS[1:])
    assert difference(first[1:], alone) <= 1


def test_seeds_and_prompts_must_pair(pair):
    with pytest.raises(ValueError, match="every prompt needs a seed, got 2 prompts and 1 seeds"):
        generate(pair.recorded.backbone(), pair.bundle, PROMPTS, [1])


def test_an_official_bundle_is_sampled_on_its_path(pair, tmp_path):
    recorded = pair.recorded
    backbone = recorded.backbone(backbones.PARTS)
    official = pair.written(tmp_path / "official", path="official")
    told = []
    plan = official.plan(backbone)
    tokens = backbone.schedule(64, 64)
    expected = [tokens.sigmas(base_levels(8))[:3].diff(), tokens.sigmas(base_levels(2)).diff()]
    torch.testing.assert_close(plan.moves, torch.cat(expected))
    torch.testing.assert_close(plan.sigmas, backbone.schedule(1024, 1024).sigmas(official.u))
    assert plan.adapters == ("slow", "slow", "fast", "fast")

    velocity = backbone.velocity

    def watched(x, sigma, *arguments):
        told.append(sigma[0].item())
        return velocity(x, sigma, *arguments)

    backbone.velocity = watched
    images = generate(backbone, official, PROMPTS, SEEDS)
    np.testing.assert_allclose(told, plan.sigmas[:-1], atol=1e-6)
    consistent = replace(official, path="consistent")
    assert difference(images, generate(recorded.backbone(backbones.PARTS), consistent, PROMPTS, SEEDS)) > 1
