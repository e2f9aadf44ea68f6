import re
from dataclasses import replace

import pytest
import torch

from pipeline import adapters, artifacts, backbones
from pipeline.recording import anchors
from pipeline.recording.trajectories import Trajectories
from pipeline.training import jobs, loop, rivals
from tests.recorded import record_tiny
from tests.tiny import make_tiny_qwen_image, make_tiny_z_image


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record_tiny(tmp_path_factory.mktemp("recorded"))


@pytest.fixture(scope="module")
def cache(recorded):
    return Trajectories(recorded.anchors)


def make_job(recorded, phase="fast", **changes):
    job = jobs.of_phase(recorded.params, recorded.loaded(), phase)
    return replace(job, settings=replace(job.settings, **changes))


def train(recorded, job, cache):
    backbone = recorded.backbone()
    history = list(loop.train(backbone, Trajectories(recorded.trajectories), job, anchors=cache))
    return history, adapters.state(backbone.transformer, job.name)


def test_random_prompts_are_words_in_any_order_and_more_of_them_begin_alike():
    prompts = anchors.random_prompts(["red", "star", "on"], 40, seed=3)
    assert len(set(prompts)) > 30 and {word for prompt in prompts for word in prompt.split()} == {"red", "star", "on"}
    lengths = {len(prompt.split()) for prompt in prompts}
    assert min(lengths) >= anchors.WORDS[0] and max(lengths) <= anchors.WORDS[1] and len(lengths) > 4
    assert anchors.random_prompts(["red", "star", "on"], 5, seed=3) == prompts[:5]
    assert anchors.random_prompts(["red", "star", "on"], 5, seed=4) != prompts[:5]


def test_without_words_a_file_is_asked_for():
    with pytest.raises(ValueError, match="anchors.prompts_file must name a text file"):
        anchors.random_prompts([], 1, seed=0)


@pytest.mark.parametrize("make", [make_tiny_qwen_image, make_tiny_z_image])
def test_every_family_has_words_of_its_tokenizer(make, tmp_path):
    words = backbones.load(make(tmp_path / "teacher"), "cpu", parts=("text",)).words()
    assert {"red", "star", "of"} <= set(words) and words == sorted(words)
    assert all(re.fullmatch("[a-z]+", word) for word in words)


def test_prompts_of_a_file_are_taken_from_it(recorded, tmp_path):
    (tmp_path / "prompts.txt").write_bytes("\ufeffa cat\r\n\u200b\r\na dog\r\na bird\r\n".encode())
    settings = replace(recorded.params.anchors, prompts_file=str(tmp_path / "prompts.txt"), prompts=2)
    recording = anchors.recording(replace(recorded.params, anchors=settings), recorded.partition, [])
    assert recording.prompts == ("a cat", "a dog")
    short = replace(recorded.params, anchors=replace(settings, prompts=4))
    with pytest.raises(ValueError, match="anchors.prompts must be at most 3"):
        anchors.recording(short, recorded.partition, [])


def test_an_anchor_is_the_guided_base_in_the_students_steps(recorded, cache):
    partition, teacher = recorded.partition, recorded.params.teacher
    assert cache.sigmas.tolist() == list(partition.sigmas) and len(cache) == recorded.params.anchors.prompts
    assert cache.nfe == 2 * len(partition.u)
    backbone = recorded.backbone()
    cond, uncond = cache.conditioning([2]), cache.negative()
    assert torch.equal(cache.states([2], [0])[0], backbone.noise([recorded.params.anchors.seed + 2], 64, 64))
    for k, sigma in enumerate(partition.sigmas[:-1]):
        x, x_next = cache.states([2], [k, k + 1]).unbind(1)
        level = torch.tensor([sigma], dtype=torch.float32)
        with torch.no_grad():
            v, u = (backbone.velocity(x, level, c, teacher.guidance_scale) for c in (cond, uncond))
        guided = u + teacher.true_cfg_scale * (v - u)
        assert torch.allclose(x_next, x + (partition.sigmas[k + 1] - sigma) * guided, atol=1e-5)


def test_both_phases_together_serve_every_step_once(recorded):
    steps = tuple(step for phase in ("slow", "fast") for step in recorded.loaded().steps(phase)[1])
    assert steps == tuple((k, k + 1) for k in range(len(recorded.partition.u)))
    (single,) = rivals.RIVALS["single"].jobs(recorded.params, recorded.loaded())
    assert single.anchored == steps
    assert all(job.anchored == () for job in rivals.official(recorded.params, recorded.loaded()))


def test_the_first_loss_is_the_mean_over_trajectories_and_anchors(recorded, cache):
    """At the first train step the student is the base: its error on an anchor is what guidance adds."""
    job = make_job(recorded, batch=12, anchor_batch=10, precision="fp32")
    alone = next(loop.train(recorded.backbone(), Trajectories(recorded.trajectories), job)).loss
    backbone, ids, errors = recorded.backbone(), list(range(len(cache))), []
    for k, _ in job.anchored:
        x, x_next = cache.states(ids, [k, k + 1]).unbind(1)
        sigma, sigma_next = cache.sigmas[[k, k + 1]].tolist()
        with torch.no_grad():
            v = backbone.velocity(x, torch.full((len(ids),), sigma), cache.conditioning(ids), 3.5)
        errors.append((v - (x_next - x) / (sigma_next - sigma)).square().mean().item())
    assert len(ids) * len(job.anchored) == 10 and len(job.steps) * 6 == 12
    wanted = (12 * alone + 10 * sum(errors) / len(errors)) / 22
    loss = next(loop.train(recorded.backbone(), Trajectories(recorded.trajectories), job, anchors=cache)).loss
    assert loss == pytest.approx(wanted, rel=1e-4)


def test_anchors_change_what_is_learnt_and_flow_matching_has_none(recorded, cache):
    job = make_job(recorded)
    without, with_ = train(recorded, job, None), train(recorded, job, cache)
    assert without[0] != with_[0] and any(not torch.equal(without[1][key], with_[1][key]) for key in without[1])
    flow = make_job(recorded, objective="flow")
    assert train(recorded, flow, None)[0] == train(recorded, flow, cache)[0]


def test_other_anchors_are_another_checkpoint(recorded, tmp_path):
    job = make_job(recorded)
    key = loop.checkpoint_key
    keys = {key(job, recorded.trajectories), key(job, recorded.trajectories, recorded.anchors)}
    artifacts.write_json(tmp_path / "index.json", {})
    keys.add(key(job, recorded.trajectories, tmp_path))
    assert len(keys) == 3
