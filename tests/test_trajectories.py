import json
import os
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusers import FluxPipeline

from pipeline import artifacts, backbones, flow
from pipeline.backbones import base
from pipeline.flow.schedule import base_levels
from pipeline.prompts import load_prompts
from pipeline.recording import trajectories
from pipeline.recording.record import conditioning_name, encode, publish, record, recording_key
from pipeline.recording.trajectories import Recording, Trajectories, shard_name
from pipeline.scenes import captions
from tests.test_partition import params_with
from tests.tiny import make_tiny_flux

RECORDING = Recording(
    prompts=("a star", "a red circle", "two hearts"),
    seeds_per_prompt=2,
    seed=40,
    shard_size=4,
    levels=tuple(base_levels(5).tolist()),
    height=64,
    width=64,
    max_sequence_length=16,
    true_cfg_scale=3.0,
    guidance_scale=3.5,
    negative_prompt="",
    dtype="fp32",
    quantization="none",
    precision="fp32",
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return make_tiny_flux(tmp_path_factory.mktemp("tiny") / "teacher")


@pytest.fixture(scope="module")
def backbone(teacher):
    return backbones.load(teacher, device="cpu", parts=("text", "transformer"))


def make_cache(backbone, folder, recording=RECORDING, digest="sha256:teacher"):
    scratch = folder.with_name(f"{folder.name}-scratch")
    scratch.mkdir(exist_ok=True)
    encode(backbone, recording, scratch)
    steps = [steps for _, steps in record(backbone, recording, scratch)]
    publish(recording, backbone.schedule(recording.height, recording.width), digest, scratch, folder)
    return steps


@pytest.fixture
def folder(backbone, tmp_path):
    make_cache(backbone, tmp_path / "trajectories")
    return tmp_path / "trajectories"


def files_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_cache_holds_what_was_asked_for(backbone, folder):
    cache = Trajectories(folder)
    assert len(cache) == 6 and cache.steps == 5 and cache.prompts == RECORDING.prompts and cache.nfe == 10
    assert cache.recording == RECORDING and cache.teacher == "sha256:teacher"
    assert cache.schedule == backbone.schedule(64, 64)
    assert cache.sigmas.dtype == torch.float64 and cache.sigmas[[0, -1]].tolist() == [1, 0]
    assert sorted(files_of(folder)) == ["index.json", "negative.safetensors", *map(shard_name, range(2))]
    assert cache.states(range(6), range(6)).shape == (6, 6, 16, 32)
    assert cache.seeds(range(6)).tolist() == [40, 41, 42, 43, 44, 45]


def test_a_trajectory_starts_from_the_noise_of_its_seed(backbone, folder):
    start = Trajectories(folder).states([0, 5], [0])
    assert torch.equal(start.squeeze(1), backbone.noise([40, 45], 64, 64))


def test_a_trajectory_ends_where_the_stock_pipeline_does(teacher, folder):
    pipe = FluxPipeline.from_pretrained(teacher)
    pipe.set_progress_bar_config(disable=True)
    cache = Trajectories(folder)
    for number, prompt in ((0, "a star"), (3, "a red circle"), (5, "two hearts")):
        latents = pipe(
            prompt,
            negative_prompt="",
            true_cfg_scale=3.0,
            height=64,
            width=64,
            num_inference_steps=5,
            max_sequence_length=16,
            generator=torch.Generator().manual_seed(40 + number),
            output_type="latent",
        ).images
        assert relative_error(cache.states([number], [5])[:, 0], latents) < 1e-5


def relative_error(a, b):
    return ((a - b).norm() / b.norm()).item()


def test_each_state_is_one_guided_euler_step_after_the_last(backbone, folder):
    cache = Trajectories(folder)
    ids = [1, 4]
    conditioning, negative = cache.conditioning(ids), base.repeat(cache.negative(), 2)
    states = cache.states(ids, range(6)).unbind(1)
    for i, (sigma, sigma_next) in enumerate(pairwise(cache.sigmas)):
        at = sigma.expand(2)
        v = backbone.velocity(states[i], at, conditioning, 3.5)
        v_uncond = backbone.velocity(states[i], at, negative, 3.5)
        expected = v_uncond + 3.0 * (v - v_uncond)
        secant = flow.secant(states[i], states[i + 1], sigma, sigma_next)
        assert relative_error(secant, expected) < 1e-4


def test_conditioning_is_that_of_the_prompt(backbone, folder):
    cache = Trajectories(folder)
    expected = backbone.encode(["two hearts", "a star"], 16)
    got = cache.conditioning([4, 1])
    assert got.keys() == expected.keys()
    for name in got:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-6)


def test_states_can_be_picked_per_trajectory_in_any_order(folder):
    cache = Trajectories(folder)
    every = cache.states(range(6), range(6))
    ids, steps = torch.tensor([5, 0, 4, 0]), torch.tensor([[0, 5], [1, 2], [3, 3], [5, 0]])
    assert torch.equal(cache.states(ids, steps), every[ids[:, None], steps])
    assert torch.equal(cache.states([3, 3], [2]), every[[3, 3]][:, [2]])


def test_a_students_steps_are_found_by_their_levels(folder):
    cache = Trajectories(folder)
    assert cache.pairs([1.0, 0.6]) == ((0, 2), (2, 5)) and cache.pairs([1 - 4 / 5]) == ((4, 5),)
    with pytest.raises(ValueError, match="has no states at base level 0.5; record them anew"):
        cache.pairs([1.0, 0.5])


@pytest.mark.usefixtures("computes_bfloat16")
def test_bfloat16_computes_nearly_the_same_states_and_keeps_them_wide(backbone, folder, tmp_path):
    make_cache(backbone, tmp_path / "bf16", replace(RECORDING, precision="bf16"))
    exact, rounded = (Trajectories(path).states(range(6), [5]) for path in (folder, tmp_path / "bf16"))
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    assert relative_error(rounded, exact) < 0.02


@pytest.mark.parametrize("ids", [[6], [-1], []])
def test_ids_out_of_range_are_refused(folder, ids):
    with pytest.raises(IndexError, match="ids must lie in 0 .. 5"):
        Trajectories(folder).states(ids, [0])


def test_without_guidance_a_step_is_one_forward(backbone, tmp_path):
    calls = []
    hook = backbone.transformer.register_forward_hook(lambda *_: calls.append(1))
    try:
        for scale, expected in ((1.0, 5), (3.0, 10)):
            recording = replace(RECORDING, true_cfg_scale=scale)
            make_cache(backbone, tmp_path / f"{scale}", recording)
            assert recording.nfe == expected == len(calls) / len(recording.ranges)
            calls.clear()
    finally:
        hook.remove()


def test_the_same_recording_gives_the_same_bytes(backbone, folder, tmp_path):
    make_cache(backbone, tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(folder)


def test_a_shard_depends_on_its_own_range_alone(backbone, folder, tmp_path):
    """The first shard of a longer recording is the same file."""
    make_cache(backbone, tmp_path / "longer", replace(RECORDING, prompts=(*RECORDING.prompts, "four rings")))
    name = shard_name(0)
    assert (tmp_path / "longer" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("shards_before", [0, 1])
def test_a_killed_recording_goes_on_from_its_finished_shards(backbone, folder, tmp_path, shards_before):
    scratch = tmp_path / "resumed-scratch"
    scratch.mkdir()
    encode(backbone, RECORDING, scratch)
    killed = record(backbone, RECORDING, scratch)
    for _ in range(5 * shards_before + 3):
        next(killed)
    killed.close()
    waiting = map(conditioning_name, range(shards_before, 2))
    assert sorted(files_of(scratch)) == [*waiting, "negative.safetensors", *map(shard_name, range(shards_before))]
    calls = []
    hook = backbone.transformer.register_forward_hook(lambda *_: calls.append(1))
    steps = make_cache(backbone, tmp_path / "resumed")
    hook.remove()
    assert len(calls) == 10 * (2 - shards_before) and sum(steps) == 10
    assert files_of(tmp_path / "resumed") == files_of(folder)
    assert not scratch.exists()


def test_the_key_of_a_recording_follows_what_it_depends_on(teacher, tmp_path):
    key = recording_key(RECORDING, teacher, "cpu")
    assert key == recording_key(replace(RECORDING), teacher, "cpu")
    other = make_tiny_flux(tmp_path / "other", seed=1)
    others = [
        recording_key(replace(RECORDING, seed=1), teacher, "cpu"),
        recording_key(RECORDING, teacher, "cuda"),
        recording_key(RECORDING, other, "cpu"),
    ]
    assert len({key, *others}) == 4


def test_publish_copies_where_it_cannot_link(backbone, folder, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    make_cache(backbone, tmp_path / "copied")
    assert files_of(tmp_path / "copied") == files_of(folder)


def test_latents_that_are_not_finite_stop_the_recording(backbone, tmp_path, monkeypatch):
    velocity = type(backbone).velocity
    monkeypatch.setattr(type(backbone), "velocity", lambda *arguments: velocity(*arguments) * float("nan"))
    encode(backbone, RECORDING, tmp_path)
    with pytest.raises(ValueError, match="latents are not finite at step 1 of shard-00000.safetensors"):
        list(record(backbone, RECORDING, tmp_path))
    assert not list(tmp_path.glob("shard-*"))


def test_the_text_encoders_are_gone_before_the_transformer_comes(teacher, folder, tmp_path):
    scratch = tmp_path / "parts"
    scratch.mkdir()
    encode(backbones.load(teacher, "cpu", ("text",)), RECORDING, scratch)
    transformer = backbones.load(teacher, "cpu", ("transformer",))
    list(record(transformer, RECORDING, scratch))
    publish(RECORDING, transformer.schedule(64, 64), "sha256:teacher", scratch, tmp_path / "apart")
    assert files_of(tmp_path / "apart") == files_of(folder)


@pytest.mark.parametrize("name", ["shard-00001.safetensors", "negative.safetensors"])
def test_a_file_that_changed_is_named(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"trajectories: {name} does not match its digest"):
        Trajectories(folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"trajectories: {name} is missing"):
        Trajectories(folder)


def test_a_shard_that_is_no_safetensors_file_is_named_when_read(folder):
    (folder / shard_name(1)).write_bytes(b"torn")
    cache = Trajectories(folder, verify=False)
    assert cache.states([0], [0]).shape == (1, 1, 16, 32)
    with pytest.raises(ValueError, match="shard-00001.safetensors is no safetensors file"):
        cache.states([5], [0])


def test_an_index_of_another_kind_is_refused(folder):
    content = artifacts.read_json(folder / "index.json")
    (folder / "index.json").write_text(json.dumps(content | {"version": 1}))
    with pytest.raises(ValueError, match="trajectories: version must be 3, got 1"):
        Trajectories(folder)
    del content["shards"]
    (folder / "index.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="index.json is not a complete index .*shards"):
        Trajectories(folder)
    (folder / "index.json").unlink()
    with pytest.raises(FileNotFoundError, match="index.json"):
        Trajectories(folder)


def test_from_params_takes_the_teachers_and_the_recordings_settings():
    params = params_with(teacher_steps=20)
    recording = Recording.from_params(params, ["a star"])
    assert recording.prompts == ("a star",) and recording.steps == 20
    coarse = replace(params, trajectories=replace(params.trajectories, steps=5, precision="bf16"))
    assert Recording.from_params(coarse, ["a star"]).levels == tuple(base_levels(5).tolist())
    assert Recording.from_params(coarse, ["a star"]).precision == "bf16"
    assert recording.shard_size == params.trajectories.shard_size
    assert recording.true_cfg_scale == params.teacher.true_cfg_scale


def test_a_shard_is_described_by_its_prompts():
    assert RECORDING.describe(0) == "shard 1 of 2: a star .. a red circle"
    assert RECORDING.describe(1) == "shard 2 of 2: two hearts"


def test_prompts_come_from_a_file_or_from_the_grammar(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a castle\n\n  a river  \na bridge\n", encoding="utf-8")
    assert load_prompts(str(file), 2, "train", 0, "trajectories") == ["a castle", "a river"]
    assert load_prompts(None, 5, "train", 3, "trajectories") == captions.sample("train", 5, 3)
    with pytest.raises(ValueError, match="trajectories.prompts must be at most 3 with .*prompts.txt, got 4"):
        load_prompts(str(file), 4, "train", 0, "trajectories")


def test_a_prompts_file_without_prompts_is_refused(tmp_path):
    with pytest.raises(ValueError, match="evaluation.prompts_file must be a text file, got .*nowhere.txt"):
        load_prompts(str(tmp_path / "nowhere.txt"), 1, "evaluation", 0, "evaluation")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="trajectories.prompts_file must hold a prompt a line, and .* is empty"):
        load_prompts(str(tmp_path / "empty.txt"), 1, "train", 0, "trajectories")


def test_a_cache_of_none_is_no_cache(folder, tmp_path):
    trajectories.write_none(tmp_path / "none")
    assert trajectories.load(tmp_path / "none") is None
    assert trajectories.load(folder).prompts == RECORDING.prompts
