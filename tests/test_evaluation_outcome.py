"""metrics.json and latency.json as one: where the times are looked for, and what does not belong together."""

import json
from pathlib import Path

import pytest

from pipeline import artifacts
from pipeline.evaluation import outcome

WHAT = {"bundle_digest": "sha256:b", "teacher_digest": "sha256:t"}
METRICS = {"arms": {"teacher": {"nfe": 100}, "student": {"nfe": 8}}, "prompts": 504, **WHAT}
LATENCY = {
    "arms": {"teacher": {"speedup_batch1": 1.0}, "student": {"speedup_batch1": 9.0}},
    "device": "a GPU",
    "latency_batches": [1],
    **WHAT,
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("evaluation", "latency"),
    [(artifacts.EVALUATION, artifacts.LATENCY), (Path("mine"), Path("mine/latency.json"))],
)
def test_scores_and_times_become_one(evaluation, latency):
    write(evaluation / "metrics.json", METRICS)
    write(latency, LATENCY)
    found = outcome.read(evaluation)
    assert found["arms"]["student"] == {"nfe": 8, "speedup_batch1": 9.0}
    assert (found["prompts"], found["device"], found["bundle_digest"]) == (504, "a GPU", "sha256:b")


def test_the_metrics_of_an_earlier_version_hold_their_times():
    earlier = {**LATENCY, **METRICS, "arms": {"student": {"nfe": 8, "speedup_batch1": 9.3}}}
    write(Path("mine/metrics.json"), earlier)
    assert outcome.read(Path("mine")) == earlier


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        (artifacts.EVALUATION, "^artifacts/timing/latency.json is missing: time the arms with `dvc repro time_arms`$"),
        (Path("mine"), "^mine/latency.json is missing: evaluate the bundle anew$"),
    ],
)
def test_missing_times_are_one_sentence(evaluation, message):
    write(evaluation / "metrics.json", METRICS)
    with pytest.raises(ValueError, match=message):
        outcome.read(evaluation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bundle_digest": "sha256:c"}, "must be of the bundle that metrics.json measures, sha256:b, got sha256:c"),
        ({"teacher_digest": "sha256:u"}, "must be of the base model that metrics.json measures, sha256:t, got"),
        ({"arms": {"teacher": {}}}, "must hold the arms teacher, student, got teacher: time them anew"),
    ],
)
def test_times_of_something_else_are_refused(change, message):
    with pytest.raises(ValueError, match=f"^artifacts/timing/latency.json {message}"):
        outcome.together(METRICS, LATENCY | change)
