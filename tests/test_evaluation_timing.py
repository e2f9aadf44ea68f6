"""latency.json: each work timed once, each arm with its times."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pipeline import artifacts
from pipeline.evaluation import timing
from pipeline.evaluation.latency import Latency
from pipeline.evaluation.timing import Timing
from tests.evaluation_case import make_artifacts, no_progress, read, small_params


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("timing"))
        patch.delenv("DVC_ROOT", raising=False)
        make_artifacts(small_params(batch=16))
        yield read(small_params(batch=16))


def test_arms_of_equal_work_are_timed_once(given):
    calls, loop, timed = [], given.sampler.denoise, Timing(given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(given.sampler, "denoise", lambda arm, *how: calls.append(arm.name) or loop(arm, *how))
        latencies = timed.measure(time.perf_counter, lambda: None)
    as_student, as_slow = dict.fromkeys(("swapped", "official"), "student"), ("fast_only", "single")
    assert timed.timed_as == as_student | dict.fromkeys(as_slow, "slow_only") | {"base_ab2": "base_guided"}
    first = [arm.name for arm in given.arms if arm.name not in timed.timed_as]
    assert calls == [name for name in first for _ in range(2)] * 2, "an untimed run and a timed one, of two batches"
    for by_arm in latencies.values():
        assert list(by_arm) == [arm.name for arm in given.arms]
        assert all(by_arm[name] is by_arm[other] for name, other in timed.timed_as.items())
        assert by_arm["student"] is not by_arm["slow_only"]


def test_an_adapter_of_another_rank_is_timed_by_itself(given):
    single = {
        key: torch.cat([tensor, tensor], dim=int("lora_B" in key)) for key, tensor in given.states["single"].items()
    }
    wider = Timing(replace(given, states=given.states | {"single": single}))
    assert wider.timed_as == {name: arm for name, arm in Timing(given).timed_as.items() if name != "single"}


@pytest.mark.parametrize(("batch", "batches"), [(1, [1]), (15, [1]), (16, [1, 16])])
def test_no_batch_is_timed_that_the_images_did_not_need(given, batch, batches):
    smaller = replace(given.params, evaluation=replace(given.params.evaluation, batch=batch))
    assert Timing(replace(given, params=smaller)).batches == batches


def test_speed_ups_are_the_teachers_time_over_the_arms():
    nfe = {"teacher": 20, "student": 4}
    latencies = {b: {name: Latency(10.0 * n, 10.0 * n + 5) for name, n in nfe.items()} for b in (1, 16)}
    row = timing.row("student", latencies)
    assert row["speedup_batch1"] == pytest.approx(205 / 45) and row["loop_speedup_batch16"] == 5
    assert row["latency_ms_batch1"] == 45 and row["loop_ms_batch16"] == 40


def test_the_file_says_what_was_timed_on_what(given, monkeypatch):
    forwards: list[None] = []
    counting = given.sampler.backbone.transformer.register_forward_hook(lambda *call: forwards.append(None))
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: len(forwards)))  # a second each
    timing.time_arms(given, artifacts.LATENCY, no_progress)
    counting.remove()
    found = artifacts.read_json(artifacts.LATENCY)
    assert list(found["arms"]) == [arm.name for arm in given.arms]
    assert found["arms"]["teacher"]["speedup_batch16"] == 1 and found["arms"]["student"]["speedup_batch1"] == 5
    assert (found["latency_batches"], found["latency_repeats"]) == ([1, 16], 1)
    assert found["device"].endswith("CPU threads, float32") and found["timed_as"]["swapped"] == "student"
    assert found["bundle_digest"] == given.bundle_digest and found["teacher_digest"] == given.teacher_digest


def test_the_device_is_named():
    assert timing.describe(torch.device("cpu"), torch.float32).endswith("CPU threads, float32")
