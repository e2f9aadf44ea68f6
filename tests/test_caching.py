"""Caches on guided steps: an idle cache changes nothing, branches do not share one, figures alone make the page."""

import json

import pytest
import torch
from click.testing import CliRunner
from diffusers import hooks

from measurements import caching, caching_page
from pipeline import backbones, params
from pipeline.scenes import captions
from tests.tiny import make_tiny_flux

STEPS = 8
VALUES = {name: 1.0 if name.endswith("threshold") else 2 for name in caching.CACHES}  # with these every cache skips


@pytest.fixture(scope="module")
def sampler(tmp_path_factory):
    size = params.load(caching.ROOT / "params.yaml").teacher
    return caching.Sampler(backbones.load(make_tiny_flux(tmp_path_factory.mktemp("tiny")), "cpu"), size)


@pytest.fixture(scope="module")
def trial(sampler):
    return sampler.batch(captions.sample("train", 2, seed=0), 0)


@pytest.fixture(scope="module")
def configs(sampler, trial):
    ratios = {STEPS: caching.calibrated(sampler, *trial, STEPS)}
    return {name: make(VALUES[name], STEPS, ratios) for name, make in caching.CACHES.items()}


def counted(sampler, trial, config):
    sampler.products = 0
    return sampler.latents(*trial, STEPS, config), sampler.products


def test_a_cache_with_threshold_0_gives_the_latents_without_a_cache(sampler, trial):
    plain, computed = counted(sampler, trial, None)
    idle, same = counted(sampler, trial, hooks.FirstBlockCacheConfig(threshold=0.0))
    assert torch.equal(plain, idle) and computed == same


@pytest.mark.parametrize("name", caching.CACHES)
def test_a_cache_skips_layers_begins_empty_and_leaves_nothing_behind(sampler, trial, configs, name):
    plain, whole = counted(sampler, trial, None)
    first, computed = counted(sampler, trial, configs[name])
    assert 0 < computed < whole and not torch.equal(first, plain)
    assert torch.equal(sampler.latents(*trial, STEPS, configs[name]), first)
    assert torch.equal(sampler.latents(*trial, STEPS), plain)


@pytest.mark.parametrize("name", caching.CACHES)
def test_the_branches_of_the_guidance_have_separate_caches(sampler, trial, configs, name):
    assert caching.fault(sampler, configs[name], *trial) == ""


def test_branches_in_one_context_share_a_cache(sampler, trial, configs, monkeypatch):
    monkeypatch.setattr(caching, "MARK", "no such tensor")
    config = configs["TaylorSeer lite, order 2, interval"]
    assert caching.fault(sampler, config, *trial).startswith("keeps one state for both branches")


def test_a_cache_that_does_not_serve_is_named_with_the_reason(sampler, trial):
    found = {name: caching.fault(sampler, config(), *trial) for name, config in caching.DOUBTFUL.items()}
    assert found["FasterCache"].startswith("does not run, RuntimeError")
    assert found["PyramidAttentionBroadcast"].startswith("keeps one state for both branches")
    assert found["SeaCache"] == found["TextKVCache"] == "skips no layer"


def test_the_command_measures_every_setting_and_makes_the_page_from_the_figures(sampler, tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "PLAIN", (STEPS, 4, 1))
    monkeypatch.setattr(caching, "GRID", {name: {STEPS: (value,)} for name, value in VALUES.items()})
    options = ["--teacher", sampler.backbone.path, "--docs", tmp_path, "--batches", 2, "--batch", 2, "--device", "cpu"]
    result = CliRunner().invoke(caching.main, [str(option) for option in options])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "caching.json").read_text())
    assert (tmp_path / "caching.md").read_text() == caching_page.page(found)
    plain, cached = ([row for row in found["rows"] if row["cached"] is kind] for kind in (False, True))
    assert [row["forwards"] for row in plain] == [2 * STEPS, 8, 2]
    assert plain[0]["time"] == 1 and plain[0]["psnr"] == max(row["psnr"] for row in found["rows"])
    assert [row["setting"] for row in cached] == [f"{STEPS} steps, {name} {value:g}" for name, value in VALUES.items()]
    assert all(0 < row["forwards"] < 2 * STEPS and row["ms"] > 0 for row in cached)
    assert [pair["plain"] for pair in found["same_time"]] == ["4 steps", "1 steps"]
    assert found["unusable"].keys() == caching.DOUBTFUL.keys() and all(found["unusable"].values())


def test_the_rival_of_a_row_is_the_closest_cache_that_takes_no_longer():
    rows = [
        {"setting": name, "cached": name != "plain", "time": time, "psnr": sum(distances) / 2}
        for name, time, distances in (("plain", 0.5, (30, 32)), ("slow", 0.6, (50, 50)), ("good", 0.5, (33, 37)))
    ]
    distances = {"plain": torch.tensor([30.0, 32]).numpy(), "good": torch.tensor([33.0, 37]).numpy()}
    pair = caching.rival(rows[0], rows, distances)
    assert pair == {"plain": "plain", "cached": "good", "gain": 4.0, "error": pytest.approx(1.0)}
    assert "a cache is closer to the reference by 4.0 dB (good)" in caching_page.sentence(pair)
    assert "are closer to the reference by 4.0 dB" in caching_page.sentence(pair | {"gain": -4.0})
    assert "neither is closer" in caching_page.sentence(pair | {"gain": -1.5})
    alone = caching.rival(rows[0], rows[:2], distances)
    assert alone["cached"] is None and "no measured cache is fast enough" in caching_page.sentence(alone)


def test_the_gain_within_the_same_forwards_needs_no_time():
    rows = [
        {"setting": name, "cached": name != "plain", "forwards": forwards, "psnr": psnr}
        for name, forwards, psnr in (("plain", 16, 30.0), ("much", 17, 50.0), ("good", 16, 28.0))
    ]
    assert caching_page.in_forwards(rows[0], rows).endswith("of plain: -2.0 dB (good, 16.0 forwards).")
    assert caching_page.in_forwards(rows[0], rows[:2]).endswith("there is no measured cache.")


def test_the_page_is_what_the_command_makes_of_its_figures():
    found = json.loads((caching.DOCS / "caching.json").read_text())
    assert (caching.DOCS / "caching.md").read_text() == caching_page.page(found)
    assert found["rows"][0]["setting"] == "50 steps" and found["prompts"] == 128
