import subprocess
from pathlib import Path

import pytest

from pipeline.registry import provenance
from pipeline.registry.runs import Metric
from tests.published import LOCK


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_records_hold_what_the_lock_says(here):
    (here / "dvc.lock").write_text(LOCK)
    slow, *_, register = provenance.stage_records()
    assert slow.name == "train_slow" and slow.command == "python -m stages.train_slow"
    assert slow.params == {"train_slow.learning_rate": 0.001, "train_slow.train_steps": 3, "training.rank": 2}
    assert slow.digests == {"dep.artifacts/trajectories": "11aa.dir", "out.artifacts/train_slow": "22bb.dir"}
    assert register.digests == {"dep.artifacts/bundle": "33cc.dir"} and register.outs == ()


def test_a_missing_lock_is_one_sentence():
    with pytest.raises(ValueError, match="dvc.lock is missing: run `dvc repro` first"):
        provenance.stage_records()


@pytest.mark.parametrize("text", ["{", "[]", "schema: '2.0'", "stages: [1]"])
def test_a_broken_lock_is_one_sentence(here, text):
    (here / "dvc.lock").write_text(text)
    with pytest.raises(ValueError, match="dvc.lock is not a lock file of DVC"):
        provenance.stage_records()


def test_flatten_joins_keys():
    assert provenance.flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}


def test_numbers_leave_out_what_is_not_finite():
    content = {"a": 1, "b": {"c": 0.5, "d": None, "e": float("inf"), "f": True, "g": "8"}}
    assert provenance.numbers(content) == [Metric("a", 1.0), Metric("b.c", 0.5)]


def test_a_history_is_read_by_train_step_and_named_by_its_words(here):
    (here / "h.csv").write_text("arm,train_step,loss\nsingle,1,0.5\nsingle,2,nan\nofficial,1,0.25\n")
    assert provenance.history("h.csv") == [Metric("single.loss", 0.5, 1), Metric("official.loss", 0.25, 1)]


def test_a_table_without_train_steps_is_no_history(here):
    (here / "t.csv").write_text("prompt,score\na star,1\n")
    assert provenance.history("t.csv") == []


def test_without_git_there_is_no_revision(here, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(here.parent))
    assert provenance.git_revision() is None
    subprocess.run(["git", "init", "-q"], check=True)
    assert provenance.git_revision() is None
    monkeypatch.setenv("PATH", "")
    assert provenance.git_revision() is None


def test_the_experiment_is_the_one_of_dvc(monkeypatch):
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    assert provenance.dvc_experiment() is None
    monkeypatch.setenv("DVC_EXP_NAME", "calm-fish")
    assert provenance.dvc_experiment() == "calm-fish"


def test_hidden_files_are_not_shown(here):
    (here / "out").mkdir()
    for name in ("grid.png", "._grid.png", "._history.csv", "model.safetensors"):
        (here / "out" / name).write_bytes(b"\xff")
    assert provenance.shown([Path("out"), Path("nowhere"), Path("out/grid.png")]) == {Path("out/grid.png"): "."}
