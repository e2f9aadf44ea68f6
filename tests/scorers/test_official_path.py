"""A whole official benchmark with a tiny model of the scorer's real class: prompts, images, answers, table."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.benchmarking import arms, collect, generate, places, prepare, score, values
from pipeline.benchmarking import settings as settings_of
from pipeline.benchmarking.manifest import load
from pipeline.evaluation.benchmarks.table import BENCHMARKS
from pipeline.evaluation.benchmarks.text_measures import longtext as measure
from tests.evaluation_case import make_artifacts, no_progress, small_params
from tests.scorers.tiny_models import make_qwen_vl

ROOT = Path(__file__).parents[2]


def test_longtext_is_read_by_a_model_of_the_real_class(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    make_artifacts(small_params())
    shutil.copytree(ROOT / "benchmarks" / "prompts", places.PROMPTS)
    shutil.copy(ROOT / "benchmarks" / "params.yaml", "benchmarks")
    longtext, shipped = BENCHMARKS["longtext"], settings_of.load()
    settings = replace(shipped, limit=1, bootstrap=100)
    prepare.prepare("longtext")
    for arm in arms.find(["teacher", "student"], small_params(), settings):
        generate.generate(longtext, arm, settings, no_progress)

    (sentence,) = score.score(longtext, ["teacher", "student"], settings, "cpu", no_progress)
    assert sentence.startswith("longtext_ocr needs the weights qwen2.5-vl-7b (Apache-2.0): download Qwen/Qwen2.5-VL-7B")
    assert collect.collect(["longtext"], settings, "")[0].waiting == ["longtext_ocr", "longtext_official"]

    place = make_qwen_vl(tmp_path / "qwen")
    settings = replace(settings, weights={"qwen2.5-vl-7b": place})
    assert score.score(longtext, ["teacher", "student"], settings, "cpu", no_progress) == []
    (found,) = collect.collect(["longtext"], settings, "")
    identity, said = values.read(load("longtext", "student"), "longtext_ocr")
    assert identity.weights.keys() == {"qwen2.5-vl-7b"} and len(said) == 32
    assert any(value.fields["text"] for value in said), "the model answers something"
    items = {item.id: item for item in prepare.items("longtext")}
    counts = [measure(items[value.item].extra["text"], value.fields["text"], "en") for value in said]
    row = next(row for row in found.rows if row.arm == "student")
    assert row.value == pytest.approx(sum(own["matched"] for own in counts) / sum(own["words"] for own in counts))
    assert row.prompts == 8 and row.subset
