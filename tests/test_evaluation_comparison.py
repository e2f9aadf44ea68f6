"""The arms on a real, tiny, random teacher: what they make, what is kept on disk, what a missing input says."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline import artifacts, export
from pipeline.evaluation import comparison, inputs, measure, prompts, samples
from pipeline.evaluation.comparison import Comparison
from pipeline.evaluation.latency import Latency
from tests.evaluation_case import drawn_images, make_artifacts, small_params
from tests.tiny import make_tiny_flux

SHARD = samples.Shard(("a red star", "two circles on black"), (3, 4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with the artifacts of the stages before evaluate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("evaluation"))
        patch.delenv("DVC_ROOT", raising=False)
        make_artifacts(small_params())
        yield patch


@pytest.fixture(scope="module")
def compared(folder):
    return make(small_params())


def make(settings):
    teacher, wanted = settings.teacher, settings.evaluation
    exam = prompts.exam(wanted.prompts_file, wanted.prompts, wanted.seed, teacher.height, teacher.width)
    return Comparison(inputs.read(settings, inputs.of_stages(settings)), exam, settings)


def arm(compared, name):
    return next(arm for arm in compared.arms if arm.name == name)


def test_the_student_makes_the_images_of_generate(compared):
    made = compared.sampler.images(arm(compared, "student"), SHARD)
    compared.sampler.weights.hold(())
    given = compared.inputs
    expected = export.generate(given.backbone, given.bundle, list(SHARD.prompts), list(SHARD.seeds))
    np.testing.assert_array_equal(made, expected.numpy())


def test_the_base_is_the_stock_pipeline_and_stays_so_after_an_adapter(compared):
    made = [compared.sampler.images(arm(compared, name), SHARD) for name in ("base_guided", "student", "base_guided")]
    np.testing.assert_array_equal(made[0], made[2])
    assert np.abs(made[0].astype(int) - made[1]).max() > 3
    teacher = compared.params.teacher
    stock = compared.inputs.backbone.pipeline(
        list(SHARD.prompts),
        negative_prompt=[""] * 2,
        true_cfg_scale=teacher.true_cfg_scale,
        guidance_scale=teacher.guidance_scale,
        num_inference_steps=4,
        height=teacher.height,
        width=teacher.width,
        max_sequence_length=teacher.max_sequence_length,
        generator=[torch.Generator().manual_seed(seed) for seed in SHARD.seeds],
        output_type="np",
    ).images
    assert np.abs((stock * 255).round().astype(int) - made[0]).max() <= 1


def test_every_adapter_makes_other_images(compared):
    names = ("student", "slow_only", "fast_only", "single", "swapped", "official")
    images = [compared.sampler.images(arm(compared, name), SHARD) for name in names]
    assert len({image.tobytes() for image in images}) == len(names)


@pytest.mark.parametrize("count", [1, 16, 35])
def test_images_are_decoded_in_parts_as_they_are_at_once(compared, count):
    sampler, sizes = compared.sampler, []
    backbone, decode = sampler.backbone, sampler.backbone.decode
    latents = sampler.noise(range(count))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbone, "decode", lambda x, *given: sizes.append(len(x)) or decode(x, *given))
        made = sampler.decode(latents)
    whole = decode(latents, sampler.height, sampler.width).numpy()
    rounding = 0 if count <= samples.DECODED_AT_ONCE else 1  # a kernel may round otherwise for another batch
    assert np.abs(made.astype(int) - whole).max() <= rounding
    assert sum(sizes) == count and max(sizes) <= samples.DECODED_AT_ONCE


def test_an_unknown_adapter_is_refused(compared):
    with pytest.raises(ValueError, match="an arm needs the adapter 'twin', got slow, fast, single, official_slow"):
        compared.sampler.weights.hold(["twin"])


def test_a_shard_is_made_once_and_found_by_the_next_evaluation(folder):
    made = []
    evaluations = [make(small_params()) for _ in range(2)]
    for one in evaluations:
        one.store.make = lambda arm, shard: made.append(arm.name) or drawn_images(arm, shard)
    teacher, student = arm(evaluations[0], "teacher"), arm(evaluations[0], "student")
    first = evaluations[0].store.images(teacher, SHARD)
    np.testing.assert_array_equal(evaluations[1].store.images(teacher, SHARD), first)
    evaluations[0].store.images(student, SHARD)
    evaluations[1].store.images(student, SHARD)
    assert made == ["teacher", "student"], "a killed evaluation goes on from its shards"

    evaluations[1].forget()
    evaluations[0].store.images(teacher, SHARD)
    evaluations[0].store.images(student, SHARD)
    assert made == ["teacher", "student", "student"], "of a finished one only the bare backbone's images stay"


def test_a_shard_that_cannot_be_read_is_made_again(folder):
    one = make(small_params())
    one.store.make = drawn_images
    path = one.store.path(arm(one, "teacher"), SHARD)
    expected = one.store.images(arm(one, "teacher"), SHARD)
    path.write_bytes(b"torn")
    np.testing.assert_array_equal(one.store.images(arm(one, "teacher"), SHARD), expected)


def test_a_shard_is_named_by_what_it_depends_on(folder):
    one = make(small_params())
    teacher, student = arm(one, "teacher"), arm(one, "student")
    other_seed = replace(SHARD, seeds=(3, 5))
    reseeded = samples.Store(one.store.make, one.store.origin, dict.fromkeys(one.inputs.states, "other"), *folders(one))
    elsewhere = samples.Store(one.store.make, {"teacher": "other"}, one.store.adapter_digests, *folders(one))
    names = [
        one.store.path(teacher, SHARD),
        one.store.path(student, SHARD),
        one.store.path(teacher, other_seed),
        one.store.path(replace(teacher, true_cfg_scale=2.0), SHARD),
        reseeded.path(student, SHARD),
        elsewhere.path(teacher, SHARD),
    ]
    assert len({path.name for path in names}) == len(names)
    assert reseeded.path(teacher, SHARD) == one.store.path(teacher, SHARD), "the base does not depend on adapters"


def folders(one):
    return one.store.lasting, one.store.passing


def test_draws_cover_every_prompt_once_and_never_share_noise():
    names = [f"prompt {i}" for i in range(10)]
    drawn = measure.draws(names, seed=100, batch=4, diversity_prompts=3, diversity_seeds=3)
    assert [p for shard in drawn.prompts for p in shard.prompts] == names
    seeds = [seed for shard in (*drawn.prompts, *drawn.seeds) for seed in shard.seeds]
    assert seeds == list(range(100, 119)) and drawn.images == 19
    assert [shard.prompts for shard in drawn.seeds] == [(name,) * 3 for name in ("prompt 0", "prompt 4", "prompt 9")]


def test_pick_finds_images_across_shards(compared):
    drawn = compared.draws.prompts
    teacher = arm(compared, "teacher")
    found = samples.pick(drawn_images, teacher, drawn, [5, 0, 4])
    whole = np.concatenate([drawn_images(teacher, shard) for shard in drawn])
    np.testing.assert_array_equal(found, whole[[5, 0, 4]])


def test_measuring_the_teacher_against_itself(compared):
    found = measure.measure(compared.arms, drawn_images, compared.exam.judge, compared.draws)
    np.testing.assert_allclose(found["teacher"].ssim, 1, atol=1e-5)
    assert found["teacher"].psnr.min() == found["teacher"].psnr.max() > 58
    assert not found["official"].passed.any() and found["teacher"].passed.any()
    assert found["student"].features.shape == (7, 88) and found["student"].spread.shape == (3,)


def test_metrics_have_the_keys_that_others_read(compared):
    found = measure.measure(compared.arms, drawn_images, compared.exam.judge, compared.draws)
    latencies = {b: {a.name: Latency(10.0 * a.nfe, 10.0 * a.nfe + 5) for a in compared.arms} for b in (1, 16)}
    metrics = compared.metrics(found, latencies)
    wanted = "nfe score score_low score_high retention retention_low retention_high fd_scenes psnr ssim diversity"
    wanted += " latency_ms_batch1 speedup_batch1 speedup_batch16 loop_ms_batch1 loop_speedup_batch1"
    for row in metrics["arms"].values():
        assert set(wanted.split()) <= row.keys()
    teacher, student = metrics["arms"]["teacher"], metrics["arms"]["student"]
    assert (teacher["retention"], teacher["fd_scenes"], teacher["psnr"]) == (1, pytest.approx(0, abs=1e-6), None)
    assert student["score"] == found["student"].passed.mean()
    assert student["speedup_batch1"] == pytest.approx(205 / 45) and student["loop_speedup_batch16"] == 5
    assert sum(task["n"] for task in metrics["teacher_tasks"].values()) == 7
    assert set(metrics["teacher_tasks"]["position"]) == {"score", "low", "high", "n"}
    assert metrics["checker_truth"] == 1
    artifacts.write_json("numbers.json", metrics)  # refuses what is not finite


def test_foreign_prompts_are_measured_without_a_score(folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("a lighthouse at dusk\n\na red star\n")
    one = make(small_params(prompts_file=str(tmp_path / "prompts.txt"), prompts=2))
    assert one.exam.judge is None and "unlike 'a lighthouse at dusk'" in one.exam.unscored
    noise = np.random.default_rng(0)
    found = measure.measure(
        one.arms, lambda a, s: noise.integers(0, 256, (len(s.seeds), 64, 64, 3), dtype=np.uint8), None, one.draws
    )
    latencies = {b: {a.name: Latency(1.0, 2.0) for a in one.arms} for b in (1, 16)}
    metrics = one.metrics(found, latencies)
    assert metrics["arms"]["student"]["retention"] is None and metrics["arms"]["student"]["psnr"] > 0
    assert metrics["teacher_tasks"] == {} and metrics["agreement"] is None


def test_the_checker_reads_only_scenes_of_its_size():
    exam = prompts.exam(None, 6, 0, 128, 64)
    assert exam.judge is None and exam.unscored == "the checker reads scenes of 64 x 64 pixels, these have 128 x 64"


def test_arms_of_equal_work_are_timed_once(compared):
    calls, loop = [], compared.sampler.denoise
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compared.sampler, "denoise", lambda arm, *given: calls.append(arm.name) or loop(arm, *given))
        latencies = compared.time(time.perf_counter, lambda: None)
    as_student, as_slow = dict.fromkeys(("swapped", "official"), "student"), ("fast_only", "single")
    assert compared.timed_as == as_student | dict.fromkeys(as_slow, "slow_only")
    timed = [arm.name for arm in compared.arms if arm.name not in compared.timed_as]
    assert calls == [name for name in timed for _ in range(2)], "an untimed run and a timed one"
    for by_arm in latencies.values():
        assert list(by_arm) == [arm.name for arm in compared.arms]
        assert all(by_arm[name] is by_arm[other] for name, other in compared.timed_as.items())
        assert by_arm["student"] is not by_arm["slow_only"]


def test_an_adapter_of_another_rank_is_timed_by_itself(compared):
    given = compared.inputs
    single = {
        key: torch.cat([tensor, tensor], dim=int("lora_B" in key)) for key, tensor in given.states["single"].items()
    }
    wider = replace(given, states=given.states | {"single": single})
    other = Comparison(wider, compared.exam, compared.params)
    assert other.timed_as == {name: arm for name, arm in compared.timed_as.items() if name != "single"}


def test_arms_without_the_teacher_are_refused(compared):
    with pytest.raises(ValueError, match="the arms must include 'teacher', got .'student'."):
        measure.measure([arm(compared, "student")], drawn_images, None, compared.draws)


def test_no_prompt_is_refused():
    with pytest.raises(ValueError, match="evaluation.prompts must be at least 1, got 0"):
        measure.draws([], 0, 4, 1, 2)


def test_a_bundle_of_another_teacher_is_refused(folder, tmp_path):
    settings = small_params()
    other = make_tiny_flux(tmp_path / "teacher", seed=1)
    with pytest.raises(ValueError, match="artifacts/bundle must belong to the teacher in .*, got a bundle for sha256:"):
        inputs.read(replace(settings, teacher=replace(settings.teacher, path=str(other))), inputs.of_stages(settings))


def test_histories_are_found_by_adapter(folder, tmp_path):
    found = inputs.histories(artifacts.TRAIN_SLOW, tmp_path, artifacts.TRAIN_CONTROLS)
    assert set(found) == {"slow", "single", "official_slow", "official_fast"}
    assert found["slow"][:2] == [(0, 1.0), (1, 0.5)] and len(found["single"]) == 10


def test_the_device_is_named():
    assert comparison.describe(torch.device("cpu"), torch.float32).endswith("CPU threads, float32")
