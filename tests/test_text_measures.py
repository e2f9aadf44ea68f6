"""The text measures of LongText-Bench and OneIG-Bench against their official numbers and against counts by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.benchmarks import statistics, text_measures

RESULTS = Path(__file__).parent / "data" / "longtext" / "results.jsonl"


def test_longtext_gives_the_score_that_the_official_summary_wrote():
    lines = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    values = [text_measures.longtext([line["ocr_gt"]], line["ocr_results"], "en") for line in lines]
    assert [value["matched"] for value in values] == [12, 7, 11, 10, 15, 8, 13, 14, 12, 9, 13, 12]
    rows = np.array([[value["matched"], value["words"]] for value in values])
    score = statistics.value(statistics.ratio_of_sums, rows, np.zeros(len(rows), dtype=np.int64))
    assert f"Text Score: {score:.4f}" == "Text Score: 0.7556"


@pytest.mark.parametrize(
    ("wanted", "read", "language", "counts"),
    [
        (["FRESH BREWS, EVERY DAY", "PARK - 2 BLOCKS"], "park: fresh\nday, day", "en", (3, 7)),
        (["to be or not to be"], "to to to be", "en", (3, 6)),
        (["Crème brûlée"], "creme brûlée", "en", (1, 2)),
        (["no text"], "No text recognized.", "en", (0, 2)),
        (["no text"], "No text recognized", "en", (2, 2)),
        (["criterion"], "addCriterion criterion", "en", (1, 1)),
        (["每日新鲜", "始于1998"], "每 日\n8新9每1", "zh", (6, 10)),
        (["Aa 中"], "aA", "zh", (2, 3)),
        (["Aa 中"], "aa中", "zh", (2, 3)),
        (["50% off!"], "", "en", (0, 2)),
    ],
)
def test_longtext_counts_words_that_are_wanted_and_read(wanted, read, language, counts):
    value = text_measures.longtext(wanted, read, language)
    assert (value["matched"], value["words"]) == counts


@pytest.mark.parametrize(
    ("wanted", "read", "measures"),
    [
        ("['Big Sale', '50% off']", "Big Sale\n50 off", (0, 1, 4, 4)),
        ("['Big Sale']", "big Sale", (1, 0, 1, 2)),
        ("['Big Sale']", "addCriterion", (8, 0, 0, 2)),
        ("['Big Sale']", "No text recognized.", (8, 0, 0, 2)),
        ("['中文 标题']", "中文标题", (0, 1, 4, 4)),
        ("['中文 标题']", "题 文 x", (3, 0, 2, 4)),
        ("['the the']", "the", (4, 0, 1, 2)),
    ],
)
def test_oneig_measures_of_one_image(wanted, read, measures):
    value = text_measures.oneig(wanted, read)
    assert tuple(value[name] for name in ("ed", "cr", "wac_matched", "wac_words")) == measures


def score(statistic, values):
    rows = np.array([[value[name] for name in ("ed", "cr", "wac_matched", "wac_words")] for value in values])
    return statistics.value(statistic, rows, np.arange(len(rows)) % 2)


def test_the_oneig_score_is_made_of_sums_over_all_prompts():
    values = [
        text_measures.oneig("['Big Sale', '50% off']", "Big Sale 50 off"),  # ED 0, CR 1, 4 of 4 words
        text_measures.oneig("['Grand opening today']", "Grand closing today"),  # ED 4: o -> c, p -> l, e -> o, n -> s
        text_measures.oneig("['Open']", ""),  # ED 4, 0 of 1
    ]
    assert [value["ed"] for value in values] == [0, 4, 4]
    distance, complete, words = 8 / 3, 1 / 3, 6 / 8
    expected = 1 - distance * (1 - complete) * (1 - words) / 100
    assert score(text_measures.oneig_score_en, values) == pytest.approx(expected, abs=1e-15)
    expected = 1 - distance * (1 - complete) * (1 - words) / 50
    assert score(text_measures.oneig_score_zh, values) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("statistic", "length", "expected"),
    [
        (text_measures.oneig_score_en, 60, 0.4),
        (text_measures.oneig_score_en, 300, 0.0),
        (text_measures.oneig_score_zh, 40, 0.2),
        (text_measures.oneig_score_zh, 300, 0.0),
    ],
)
def test_a_long_edit_distance_counts_as_the_longest(statistic, length, expected):
    assert score(statistic, [text_measures.oneig("x" * length, "")]) == pytest.approx(expected)


def test_the_statistic_takes_all_resamples_at_once():
    values = [text_measures.oneig("['a b c']", read) for read in ("a b c", "a b", "x", "")]
    rows = np.array([list(value.values()) for value in values])
    sums, counts = statistics.resampled(rows, np.zeros(4, dtype=np.int64), 50, seed=0)
    scores = text_measures.oneig_score_en(sums, counts)
    single = [text_measures.oneig_score_en(sums[i : i + 1], counts[i : i + 1])[0] for i in range(50)]
    assert scores.shape == (50,) and scores.tolist() == single and len(set(single)) > 5


def slow_levenshtein(first, second):
    """The recursion of the definition."""
    if not first or not second:
        return len(first) + len(second)
    return min(
        slow_levenshtein(first[1:], second) + 1,
        slow_levenshtein(first, second[1:]) + 1,
        slow_levenshtein(first[1:], second[1:]) + (first[0] != second[0]),
    )


@settings(deadline=None, derandomize=True)
@given(st.text("ab ", max_size=6), st.text("ab ", max_size=6))
def test_the_edit_distance_is_that_of_the_definition(first, second):
    assert text_measures.levenshtein(first, second) == slow_levenshtein(first, second)


def test_the_edit_distance_of_known_pairs():
    assert text_measures.levenshtein("kitten", "sitting") == 3
    assert text_measures.levenshtein("中文标题", "中文題") == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: text_measures.longtext(["a"], "a", "fr"), "the language must be en or zh, got 'fr'"),
        (lambda: text_measures.longtext(["!"], "a", "en"), r"the wanted texts must have a word, got \['!'\]"),
        (lambda: text_measures.oneig("[]", "a"), r"the wanted text must have a word, got '\[\]'"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
