"""The official benchmarks: their prompts, and how their numbers are made."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from pipeline import artifacts
from pipeline.benchmarking.scorers.table import SCORERS
from pipeline.evaluation.benchmarks import coco, statistics
from pipeline.evaluation.benchmarks.official import SHIPPED, Value, by_prompt
from pipeline.evaluation.benchmarks.table import BENCHMARKS, find
from pipeline.evaluation.benchmarks.text_measures import oneig_score
from pipeline.scenes import captions
from tests import benchmark_case as case

SHIPPED_NAMES = [name for name, benchmark in BENCHMARKS.items() if benchmark.source.shipped]


def test_the_table_holds_each_benchmark_under_its_own_name():
    assert {name: benchmark.name for name, benchmark in BENCHMARKS.items()} == {name: name for name in BENCHMARKS}
    with pytest.raises(ValueError, match="the benchmark must be one of .*got 'genevil'; did you mean geneval?"):
        find("genevil")


@pytest.mark.parametrize("name", SHIPPED_NAMES)
def test_shipped_prompts_are_the_pinned_bytes_with_their_licence(name):
    for file in BENCHMARKS[name].source.files:
        assert artifacts.file_digest(case.shipped(name)[file.name]) == f"sha256:{file.sha256}"
    assert (SHIPPED / "prompts" / name / "LICENSE").is_file()


def test_no_other_prompts_are_shipped():
    assert set(SHIPPED_NAMES) == {path.name for path in (SHIPPED / "prompts").iterdir() if path.is_dir()}
    assert "CC BY-NC" in BENCHMARKS["oneig"].source.licence and not BENCHMARKS["oneig"].source.shipped


@pytest.mark.parametrize("name", [*SHIPPED_NAMES, "selftest"])
def test_a_source_gives_as_many_prompts_as_the_entry_counts(name):
    items = case.items(name)
    assert Counter(item.category for item in items) == BENCHMARKS[name].counts
    assert len({item.id for item in items}) == len({item.prompt for item in items}) == len(items)
    assert json.loads(json.dumps([item.extra for item in items])) == [item.extra for item in items]


@pytest.mark.parametrize(
    ("name", "total"),
    [("coco", 10000), ("dpg", 1065), ("geneval", 553), ("hpsv2", 3200), ("longtext", 160), ("oneig", 1120)],
)
def test_the_counts_are_those_of_the_publications(name, total):
    assert sum(BENCHMARKS[name].counts.values()) == total


def test_oneig_in_chinese_has_200_prompts_more():
    assert sum(BENCHMARKS["oneig_zh"].counts.values()) == 1320


def test_prompts_keep_the_white_space_at_their_ends():
    prompts = {item.id: item.prompt for item in case.items("dpg")}
    assert {name for name, prompt in prompts.items() if prompt != prompt.strip()} == {"countbench4", "diffusiondb25"}


def test_longtext_goes_by_its_own_numbers():
    names = {item.id for item in case.items("longtext")}
    assert names == {f"{i:04d}" for i in range(200) if not (80 <= i < 100 or 140 <= i < 160)}
    item = case.items("longtext_zh")[0]
    assert item.extra["language"] == "zh" and item.extra["text"][0] == "每日新鲜烘焙"


def test_columns_have_keys_of_their_own_and_what_is_said_of_them_exists():
    keys = [one.column.key for b in BENCHMARKS.values() for one in (*b.metrics, *b.distances)]
    assert len(keys) == len(set(keys))
    for benchmark in BENCHMARKS.values():
        columns = {metric.column.key for metric in benchmark.metrics}
        assert {one.metric for one in benchmark.published} <= columns and benchmark.sanity.keys() <= columns
        assert all(one.column.better for one in (*benchmark.metrics, *benchmark.distances))
        assert {external.name for external in benchmark.external} - set(benchmark.scorers) <= {"hpsv2_package"}


def test_every_scorer_that_is_not_external_is_one_that_runs_in_this_process():
    assert {name for benchmark in BENCHMARKS.values() for name in benchmark.in_process} == SCORERS.keys()


def test_oneig_reads_its_files(tmp_path):
    benchmark = BENCHMARKS["oneig"]
    items = {item.id: item for item in benchmark.parse(case.oneig_files(tmp_path))}
    assert list(items) == ["anime_000", "anime_001", "human_000", "object_000", "text_000", "text_001", "reasoning_000"]
    assert items["anime_000"].extra["questions"] == {"1": "Is it there?", "2": "Is it red?"}
    assert items["anime_000"].extra["dependencies"] == {"1": [0], "2": [1]}
    assert items["anime_000"].extra["style"] == "Pop Art" and "style" not in items["anime_001"].extra
    assert items["text_001"].extra == {"language": "en", "text": case.WANTED[1]}
    asked = {m.column.key: sum(map(m.asks, items.values())) for m in benchmark.metrics}
    assert asked == {
        "oneig_alignment": 4,
        "oneig_text": 2,
        "oneig_reasoning": 1,
        "oneig_style": 1,
        "oneig_diversity": 7,
        "oneig_alignment_official": 4,
        "oneig_text_official": 2,
    }


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "OneIG-Bench.csv",
            "Portrait",
            "Portraits",
            r"OneIG-Bench.csv, line 4, must have a category among .*'Portraits'",
        ),
        ("OneIG-Bench.csv", "prompt_en", "prompt", r"line 1, must have the column 'prompt_en'"),
        ("OneIG-Bench.csv", "NP,short", "NP", r"line 2, must have 6 cells as the header has"),
        ("OneIG-Bench.csv", '"a human, the 0th"', '"a human, the 0th', r"line \d+, must be a row of CSV"),
        (
            "text_content.csv",
            "001,",
            "002,",
            r"OneIG-Bench.csv, line 7, must have an id that the file for text has too",
        ),
        ("human.json", "[1]", "[3]", r"human.json must have questions and what they depend on for 000, got"),
        ("human.json", "question", "questions", r"human.json must have questions and what they depend on for 000, got"),
    ],
)
def test_oneig_refuses_other_files(tmp_path, file, old, new, message):
    files = case.oneig_files(tmp_path)
    text = files[file].read_text()
    assert old in text
    files[file].write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message):
        BENCHMARKS["oneig"].parse(files)


def test_hpsv2_reads_a_list_of_texts_a_style(tmp_path):
    benchmark, files = BENCHMARKS["hpsv2"], {}
    for style in benchmark.counts:
        files[f"{style}.json"] = tmp_path / f"{style}.json"
        files[f"{style}.json"].write_text(json.dumps([f"{style} one", f"{style} two"]))
    items = benchmark.parse(files)
    assert [(item.id, item.category, item.prompt) for item in items[2:4]] == [
        ("concept-art_00000", "concept-art", "concept-art one"),
        ("concept-art_00001", "concept-art", "concept-art two"),
    ]
    files["photo.json"].write_text('{"prompts": []}')
    with pytest.raises(ValueError, match="photo.json must be a list of texts, got dict"):
        benchmark.parse(files)


def test_coco_takes_the_first_10000_lines_of_a_text_file(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("".join(f"caption {i}\n" for i in range(coco.COUNT + 5)))
    items = BENCHMARKS["coco"].parse({path.name: path})
    assert len(items) == coco.COUNT and (items[-1].id, items[-1].prompt) == ("09999", "caption 9999")
    path.write_text("one\n\ntwo\n")
    with pytest.raises(ValueError, match="captions.txt, line 2, must be a caption, got ''"):
        BENCHMARKS["coco"].parse({path.name: path})
    with pytest.raises(ValueError, match="coco must have one file of captions, got 2: a, b"):
        BENCHMARKS["coco"].parse({"a": path, "b": path})


def test_coco_takes_each_images_first_annotation_in_an_order_of_its_own(tmp_path):
    path = tmp_path / "captions_val2014.json"
    rows = [
        {"image_id": image, "id": 1000 - 10 * n - image, "caption": f" {image} {n} "}
        for image in range(9)
        for n in (0, 1)
    ]
    path.write_text(json.dumps({"annotations": rows}))
    items = BENCHMARKS["coco"].parse({path.name: path})
    assert {item.id: item.prompt for item in items} == {f"{image:012d}": f"{image} 1" for image in range(9)}
    order = [item.extra["image"] for item in items]
    path.write_text(json.dumps({"annotations": rows[::-1]}))
    assert order != sorted(order)
    assert [item.extra["image"] for item in BENCHMARKS["coco"].parse({path.name: path})] == order


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "must have annotations, got"),
        ('{"annotations": [{"image_id": 1, "caption": "a"}]}', "must have id as int in each annotation, got"),
        ('{"annotations": [3]}', "must have image_id as int in each annotation, got 3"),
        ("{", "captions.json is not a JSON file"),
    ],
)
def test_coco_refuses_other_json(tmp_path, content, message):
    path = tmp_path / "captions.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        BENCHMARKS["coco"].parse({path.name: path})


def test_coco_measures_distances_to_photographs_and_to_the_teacher():
    found = {(d.column.key, d.scorer, d.kind, d.reference) for d in BENCHMARKS["coco"].distances}
    assert found == {
        (f"{key}{suffix}", scorer, kind, reference)
        for key, scorer, kind in (
            ("fid", "inception", "fid"),
            ("patch_fid", "inception_patch", "fid"),
            ("kid", "inception", "kid"),
        )
        for reference, suffix in (("real", ""), ("teacher", "_teacher"))
    }


def value_of(metric, rows, categories=None):
    rows = np.array(rows, dtype=np.float64)
    groups = np.zeros(len(rows), dtype=np.int64) if categories is None else np.array(categories)
    return statistics.value(metric.statistic, rows, groups)


def metric(name, key):
    return next(metric for metric in BENCHMARKS[name].metrics if metric.column.key == key)


def test_geneval_is_the_mean_of_its_tags_and_not_of_its_images():
    assert value_of(metric("geneval", "geneval"), [[1], [1], [1], [0]], [0, 0, 0, 1]) == 0.5


def test_dpg_is_the_mean_times_100():
    assert value_of(metric("dpg", "dpg"), [[0.5], [1], [0.25]]) == pytest.approx(100 * 1.75 / 3)


def test_longtext_weighs_a_prompt_by_its_words():
    assert value_of(metric("longtext", "longtext"), [[1, 2], [9, 10]]) == pytest.approx(10 / 12)


@pytest.mark.parametrize(("name", "worst"), [("oneig", 100), ("oneig_zh", 50)])
def test_the_text_dimension_follows_its_formula(name, worst):
    rows = [[10, 0.5, 3, 4], [30, 0.25, 4, 16]]
    expected = 1 - 20 * (1 - 0.375) * (1 - 7 / 20) / worst
    assert value_of(metric(name, f"{name}_text"), rows) == pytest.approx(expected)
    far = [[1000, 0, 5, 10]]
    assert value_of(metric(name, f"{name}_text"), far) == pytest.approx(0.5), "the edit distance counts up to the worst"


def test_the_text_dimension_takes_many_resamples_at_once():
    sums = np.array([[[10.0, 0.5, 3, 4]], [[30.0, 0.25, 4, 16]]])
    found = oneig_score(100)(sums, np.array([[1], [1]]))
    assert found == pytest.approx([1 - 10 * 0.5 * 0.25 / 100, 1 - 30 * 0.75 * 0.75 / 100])


def test_a_prompt_that_a_known_bug_loses_need_not_have_a_value():
    items = [item for item in case.items("dpg") if item.id in ("0", "partiprompts97")]
    values = [Value(item="0", seed=seed, fields={"score": 0.5}) for seed in range(4)]
    rows, categories = by_prompt(metric("dpg", "dpg"), values, items)
    assert rows.tolist() == [[0.5]] and categories.tolist() == [0]
    both = [*values, Value(item="partiprompts97", seed=0, fields={"score": 1.0})]
    assert by_prompt(metric("dpg", "dpg"), both, items)[0].tolist() == [[0.5], [1.0]]
    with pytest.raises(
        ValueError, match="dpg must have a value for each of 2 prompts, got none for 1, .* partiprompts97"
    ):
        by_prompt(replace(metric("dpg", "dpg"), lost=()), values, items)


def test_the_shipped_teacher_can_draw_no_object_of_geneval():
    metadata = [item.extra["metadata"] for item in case.items("geneval")]
    asked = {thing["class"] for entry in metadata for thing in entry["include"]}
    assert len(asked) == 80 and not asked & {*captions.SHAPES}
