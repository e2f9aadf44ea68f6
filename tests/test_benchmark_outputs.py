"""What official scorers write, read back: the totals of their own summaries, and a sentence for a wrong line."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pipeline.benchmarking.scorers.table import find
from pipeline.evaluation.benchmarks import statistics
from pipeline.evaluation.benchmarks.official import by_prompt
from pipeline.evaluation.benchmarks.oneig_scorers import asked
from pipeline.evaluation.benchmarks.table import BENCHMARKS
from tests import benchmark_case as case
from tests.benchmark_case import DATA

NAMES = {"geneval": "results.jsonl", "dpg": "dpg.txt", "longtext": "results.jsonl"}
EXTERNAL = {"geneval": "geneval", "dpg": "dpg", "longtext": "longtext_official", "selftest": "selftest_red"}


def scorer(name, external=None):
    wanted = external or EXTERNAL[name]
    return next(scorer for scorer in BENCHMARKS[name].external if scorer.name == wanted)


@pytest.fixture
def out(tmp_path):
    """Makes a folder of results of the official code, with a line changed where the test asks for it."""

    def make(name, line=None, old="", new=""):
        file = {"dpg": "dpg-bench_results.txt"}.get(name, NAMES[name])
        lines = (DATA / name / file).read_text().split("\n")
        if line is not None:
            assert old in lines[line - 1]
            lines[line - 1] = lines[line - 1].replace(old, new)
        (tmp_path / NAMES[name]).write_text("\n".join(lines))
        return tmp_path

    return make


def totals(name, values, items):
    """Each number of the table that these values give, over the prompts that have one."""
    found = {value.item for value in values}
    some = [item for item in items if item.id in found]
    numbers = {}
    for metric in BENCHMARKS[name].metrics:
        if metric.scorer in EXTERNAL.values() and any(map(metric.asks, some)):
            numbers[metric.column.key] = statistics.value(metric.statistic, *by_prompt(metric, values, some))
    return numbers


def test_geneval_gives_the_totals_of_its_summary(out):
    values = scorer("geneval").parse(out("geneval"), case.items("geneval"), "teacher")
    assert len(values) == 48 and {value.seed for value in values} == {0, 1, 2, 3}
    numbers = totals("geneval", values, case.items("geneval"))
    summary = (DATA / "geneval" / "summary.txt").read_text()
    assert f"{numbers.pop('geneval'):.5f}" == re.search(r"Overall score .*: (.*)", summary)[1] == "0.33333"
    printed = dict(re.findall(r"^(\w+) += (\S+)%", summary, re.MULTILINE))
    assert {key: f"{100 * number:.2f}" for key, number in numbers.items()} == {
        f"geneval_{tag}": share for tag, share in printed.items()
    }


def test_dpg_gives_the_mean_of_its_summary_and_loses_the_prompt_of_the_first_row(out):
    folder, items = out("dpg"), case.items("dpg")
    values = scorer("dpg").parse(folder, items, "teacher")
    assert totals("dpg", values, items) == {"dpg": 68.75}
    assert "DPG-Bench score: 68.75\n" in (folder / "dpg.txt").read_text()
    assert [(v.seed, v.fields["score"]) for v in values[:4]] == [(0, 0.5), (1, 0.5), (2, 0.5), (3, 1.0)]
    # its questions began with prompt 0, which failed; those of the benchmark begin with another
    rows = (DATA / "dpg" / "made_up_dpg_bench.csv").read_text().splitlines()
    answers = (DATA / "dpg" / "dpg-bench_results_detail.txt").read_text()
    assert rows[1].startswith("0,") and rows[1].endswith("Is there a field?")
    assert "0.png, (0, 0, 32, 32), Is the field green?" in answers and "0.png, (0, 0, 32, 32), Is there" not in answers
    assert "0" not in {value.item for value in values}
    (metric,) = BENCHMARKS["dpg"].metrics
    assert metric.lost == ("partiprompts97",) and "partiprompts97 fails" in scorer("dpg").note


def test_longtext_gives_the_score_of_its_summary(out):
    values = scorer("longtext").parse(out("longtext"), case.items("longtext"), "teacher")
    assert [(v.item, v.seed) for v in values] == [(f"{i:04d}", seed) for i in range(3) for seed in range(4)]
    numbers = totals("longtext", values, case.items("longtext"))
    assert f"Text Score: {numbers['longtext_official']:.4f}\n" == (DATA / "longtext" / "scores.txt").read_text()
    assert f"{numbers['longtext_official']:.4f}" == "0.7556"


@pytest.mark.parametrize("name", ["geneval", "dpg", "longtext"])
def test_what_is_missing_gives_fewer_values(out, name):
    folder = out(name)
    whole = scorer(name).parse(folder, case.items(name), "teacher")
    path = folder / NAMES[name]
    path.write_text("\n".join(path.read_text().split("\n")[1:]))
    fewer = scorer(name).parse(folder, case.items(name), "teacher")
    assert fewer == whole[-len(fewer) :] and len(fewer) == len(whole) - {"dpg": 4}.get(name, 1)


WRONG = [
    ("geneval", 2, "{", "", r'results.jsonl, line 2, must be a JSON object, got \'"filename"'),
    ("geneval", 2, '"correct":true', '"correct":1', r"line 2, must have correct as bool, got 1"),
    ("geneval", 3, "samples\\/0002.png", "grid.png", r"line 3, must have a filename like 00000/samples/0000.png, got"),
    ("geneval", 1, "\\/00000\\/", "\\/00999\\/", r"line 1, must name one of the 553 prompts, got '00999'"),
    ("geneval", 4, '"tag":"single_object"', '"tag":"counting"', r"line 4, must have the tag and prompt of 00000, got"),
    ("geneval", 2, "0001.png", "0000.png", r"line 2, must be the only one for image 0 of 00000, got"),
    ("dpg", 1, ", 0.5, 0.5, 0.5", ", 0.5, 0.5", r"dpg.txt, line 1, must be an image, 4 scores and their mean, got"),
    ("dpg", 1, "0.5, 0.5, 0.5", "0.5, nan, 0.5", r"line 1, must have a finite number as score, got 'nan'"),
    ("dpg", 2, "0.0", "no", r"line 2, must have a finite number as score, got 'no'"),
    ("dpg", 2, "0.75", "0.7", r"line 2, must end with the mean of its 4 scores, got"),
    ("dpg", 2, "whoops9", "whoops99", r"line 2, must name one of the 1065 prompts, got 'whoops99'"),
    (
        "dpg",
        2,
        "whoops9.png, 1.0, 0.0, 1.0, 1.0, 0.75",
        "partiprompts1.png, 1, 1, 1, 1, 1",
        r"line 2, must be the only",
    ),
    ("longtext", 1, '"match_word_count": 12, ', "", r"line 1, must have match_word_count as int, got None"),
    (
        "longtext",
        1,
        '"match_word_count": 12',
        '"match_word_count": 15',
        r"must find at most the words .* got \[15, 14\]",
    ),
    ("longtext", 2, "0000_2.png", "0000_0.png", r"line 2, must have an image like 0000_1.png, got '/imgs/0000_0.png'"),
    ("longtext", 2, "0000_2.png", "0100_2.png", r"line 2, must have the prompt of 0100, got"),
]


@pytest.mark.parametrize(("name", "line", "old", "new", "message"), WRONG)
def test_a_line_that_is_wrong_is_named(out, name, line, old, new, message):
    folder = out(name, line, old, new)
    with pytest.raises(ValueError, match=message):
        scorer(name).parse(folder, case.items(name), "teacher")


@pytest.fixture
def oneig(tmp_path):
    """The seven prompts of a small OneIG, and a reader of an arm's values from tests/data."""
    items = BENCHMARKS["oneig"].parse(case.oneig_files(tmp_path / "files"))

    def read(external, arm, folder=DATA / "oneig"):
        return scorer("oneig", external).parse(folder, items, arm)

    return items, read


@pytest.mark.parametrize(
    ("external", "key", "expected"),
    [
        ("oneig_style", "oneig_style", 0.5),
        ("oneig_reasoning", "oneig_reasoning", 0.3125),
        ("oneig_diversity", "oneig_diversity", 0.375),
    ],
)
def test_oneig_gives_a_mean_of_prompts(oneig, external, key, expected):
    items, read = oneig
    values = read(external, "teacher")
    metric = next(metric for metric in BENCHMARKS["oneig"].metrics if metric.column.key == key)
    some = [item for item in items if item.id in {value.item for value in values}]
    assert statistics.value(metric.statistic, *by_prompt(metric, values, some)) == expected
    assert all(value.seed is None for value in values)


def test_oneig_reads_the_newest_table_and_an_empty_cell_is_no_value(oneig):
    items, read = oneig
    found = {arm: {v.item: v.fields for v in read("oneig_alignment_official", arm)} for arm in ("teacher", "student")}
    assert found["teacher"] == {
        "anime_000": {"alignment": 0.5},
        "human_000": {"alignment": 1.0},
        "object_000": {"alignment": 0.75},
    }
    assert found["student"].keys() == {"anime_000", "human_000"}
    metric = next(m for m in BENCHMARKS["oneig"].metrics if m.scorer == "oneig_alignment_official")
    with pytest.raises(
        ValueError, match="oneig_alignment_official must have a value for each of 4 prompts, got none for 2"
    ):
        by_prompt(metric, read("oneig_alignment_official", "student"), items)


def test_oneig_gives_the_text_dimension_of_its_formula(oneig):
    items, read = oneig
    metric = next(metric for metric in BENCHMARKS["oneig"].metrics if metric.column.key == "oneig_text_official")
    words = np.array([4, 10])  # of the two texts
    for arm, ed, cr, wac in (("teacher", 6, 0.375, [0.75, 0.9]), ("student", 100, 0, [0.25, 0.1])):
        expected = 1 - ed * (1 - cr) * (1 - (words * wac).sum() / words.sum()) / 100
        found = statistics.value(metric.statistic, *by_prompt(metric, read("oneig_text_official", arm), items))
        assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("['one two', 'three, four!']", 4),
        ("['Café Zoë 2025']", 3),
        ("['每日新鲜 烘焙', 'ABC']", 9),
        ("['...']", 0),
    ],
)
def test_the_words_asked_for_are_counted_as_the_official_code_does(text, words):
    assert asked(text) == words


@pytest.mark.parametrize(
    ("file", "old", "new", "external", "message"),
    [
        (
            "style",
            "0.5",
            "high",
            "oneig_style",
            r"style_prompt_score_EN_.*csv, line 2, must have a finite number as style",
        ),
        ("style", ",teacher", ",gpt", "oneig_style", r"line 1, must have the column 'teacher', got"),
        ("style", "000", "002", "oneig_style", r"line 2, must name one of the 7 prompts, got 'anime_002'"),
        ("text", "[10.0, 0.5, 0.75]", "[10.0, 0.5]", "oneig_text_official", r"line 2, must hold \[ED, CR, WAC\], got"),
        ("text", "[10.0, 0.5, 0.75]", "12", "oneig_text_official", r"line 2, must hold \[ED, CR, WAC\], got '12'"),
        ("text", "10.0, 0.5", "10.0, NaN", "oneig_text_official", r"line 2, must have a finite number as cr, got nan"),
    ],
)
def test_a_cell_of_oneig_that_is_wrong_is_named(oneig, tmp_path, file, old, new, external, message):
    _, read = oneig
    (path,) = (DATA / "oneig").glob(f"{file}_prompt_score_*.csv")
    text = path.read_text()
    assert old in text
    (tmp_path / path.name).write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message):
        read(external, "teacher", tmp_path)


def test_a_missing_table_is_named(oneig, tmp_path):
    with pytest.raises(ValueError, match=r"must hold style_prompt_score_EN_\*.csv, got none"):
        oneig[1]("oneig_style", "teacher", tmp_path)


@pytest.fixture
def selftest(tmp_path):
    """Runs the shipped stand-in for an official scorer on grids of one-colour images."""
    items = case.items("selftest")

    def run(**options):
        call = case.call(tmp_path, python=sys.executable, **options)
        shutil.rmtree(call.images, ignore_errors=True)
        scorer("selftest").layout(call.images, items, {"teacher": case.Images(tmp_path / "single")}, 2)
        (command,) = scorer("selftest").commands(call)
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        return done, call.out

    return items, run


def test_the_selftests_scorer_measures_the_share_of_red(selftest):
    items, run = selftest
    done, out = run()
    assert done.returncode == 0, done.stderr
    values = scorer("selftest").parse(out, items, "teacher")
    assert [(v.item, v.seed) for v in values] == [(str(i), seed) for i in range(8) for seed in range(2)]
    assert [v.fields["red"] for v in values[:2]] == pytest.approx([200 / 280, 40 / 280])
    assert totals("selftest", values, items) == {"selftest_red": pytest.approx(120 / 280)}


def test_the_selftests_scorer_fails_as_it_is_told(selftest):
    items, run = selftest
    done, out = run(crash_after="5")
    assert done.returncode == 1 and "stopped after 5 rows, as asked" in done.stderr
    assert len(scorer("selftest").parse(out, items, "teacher")) == 5
    done, out = run(drop="3.png")
    assert done.returncode == 0 and len(scorer("selftest").parse(out, items, "teacher")) == 14
    (out / "red.csv").write_text("file,image,red\n0.png,first,0.5\n")
    with pytest.raises(ValueError, match="red.csv, line 2, must have the number of an image, got 'first'"):
        scorer("selftest").parse(out, items, "teacher")


def test_brightness_is_the_mean_luminance():
    entry = find("brightness")
    images = [Image.new("RGB", (8, 4), colour) for colour in ("black", "white", (255, 0, 0))]
    found = entry.load({}, "cpu").fields(images, [])
    assert [one["brightness"] for one in found] == pytest.approx([0, 1, 0.299], abs=2e-3)
    assert not entry.weights and not entry.extracts
