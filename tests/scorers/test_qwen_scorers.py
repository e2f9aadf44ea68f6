"""The scorers on Qwen2.5-VL: what they ask of which image, and what they make of the answers."""

import pytest
from PIL import Image

from pipeline.benchmarking.scorers import table
from pipeline.benchmarking.scorers.longtext_ocr import LongtextOcr
from pipeline.benchmarking.scorers.oneig_alignment import OneigAlignment
from pipeline.benchmarking.scorers.oneig_text import OneigText
from pipeline.benchmarking.scorers.vqa_qwen import VqaQwen
from pipeline.evaluation.benchmarks.official import Item

READING = (
    "Recognize the text in the image, only reply with the text content, but avoid repeating previously mentioned "
    "content. If no text is recognized, please reply with 'No text recognized'."
)
BLACK, WHITE = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "white")


class Said:
    """A model that says what a table holds for an image's colour and a question, and notes what it was asked."""

    def __init__(self, replies):
        self.replies, self.calls = replies, []

    def answers(self, images, questions, max_new_tokens):
        self.calls.append((len(images), max_new_tokens))
        colours = ["black" if image is BLACK else "white" for image in images]
        return [self.replies[key] for key in zip(colours, questions, strict=True)]

    def probabilities(self, images, questions, answer):
        assert answer == "Yes"
        return self.answers(images, questions, 1)


def test_the_table_holds_each_scorer_by_its_name():
    assert {"longtext_ocr", "oneig_alignment", "oneig_text", "vqascore_qwen2.5-vl-7b"} <= table.SCORERS.keys()
    assert all(name == entry.name for name, entry in table.SCORERS.items())


def item(**extra):
    return Item(id="007", prompt="a {cat}", extra=extra)


def test_vqascore_asks_whether_the_figure_shows_the_prompt():
    question = 'Does this figure show "a {cat}"? Please answer Yes or No.'
    scorer = VqaQwen(model=Said({("black", question): 0.25, ("white", question): 0.75}))
    assert scorer.fields([BLACK, WHITE], [item(), item()]) == [{"vqascore": 0.25}, {"vqascore": 0.75}]


def test_longtext_counts_the_words_that_were_read():
    model = Said({("black", READING): "No text recognized.", ("white", READING): "Big\nsale TODAY 中文"})
    items = [item(text=["Big Sale"], language="en"), item(text=["Big", "sale, today!"], language="en")]
    assert LongtextOcr(model=model).fields([BLACK, WHITE], items) == [
        {"matched": 0.0, "words": 2.0, "text": "No text recognized."},
        {"matched": 3.0, "words": 3.0, "text": "Big\nsale TODAY 中文"},
    ]
    chinese = LongtextOcr(model=model).fields([WHITE], [item(text=["中文", "文章"], language="zh")])
    assert chinese == [{"matched": 2.0, "words": 4.0, "text": "Big\nsale TODAY 中文"}]
    assert model.calls == [(2, 1024), (1, 1024)]


def test_oneig_text_measures_what_was_read():
    model = Said({("black", READING): "Big Bale", ("white", READING): "a " * 61})
    items = [item(text="['Big Sale']"), item(text=str(["a " * 61])), item(text="['Big Bale']")]
    first, second, third = OneigText(model=model).fields([BLACK, WHITE, BLACK], items)
    assert first == {"ed": 1.0, "cr": 0.0, "wac_matched": 1.0, "wac_words": 2.0, "text": "Big Bale"}
    assert second == {"ed": 0.0, "cr": 1.0, "wac_matched": 61.0, "wac_words": 61.0, "text": "a " * 61}
    assert third == {"ed": 0.0, "cr": 1.0, "wac_matched": 2.0, "wac_words": 2.0, "text": "Big Bale"}
    assert sorted(model.calls) == [(1, 256), (2, 128)]


def test_sixty_words_are_read_with_the_shorter_limit():
    model = Said({("black", READING): ""})
    for words in (60, 61):
        OneigText(model=model).fields([BLACK], [item(text=" ".join(["a"] * words))])
    assert model.calls == [(1, 128), (1, 256)]


def alignment(dependencies, **replies):
    """The alignment of one image whose questions have these parents, by the answers to q1, q2, ..."""
    table = {("black", f"{name}?. Please answer 'Yes' or 'No' only."): answer for name, answer in replies.items()}
    questions = {str(number): f"{name}?" for number, name in enumerate(replies, start=1)}
    scorer = OneigAlignment(model=Said(table))
    return scorer.fields([BLACK], [item(questions=questions, dependencies=dependencies)])[0]["alignment"]


@pytest.mark.parametrize(
    ("parents", "replies", "expected"),
    [
        ({"1": [0], "2": [0]}, ("Yes", "Yes"), 1.0),
        ({"1": [0], "2": [0]}, ("Yes", "No"), 0.5),
        ({"1": [0], "2": [0]}, ("Yes.", "yes"), 0.0),  # only "Yes" is an answer with Yes
        ({"1": [0], "2": [1]}, ("No", "Yes"), 0.0),
        ({"1": [0], "2": [1]}, ("Maybe", "Yes"), 0.0),
        ({"1": [2], "2": [0]}, ("Yes", "No"), 0.0),
        ({"1": [0], "2": [0], "3": [1, 2]}, ("Yes", "No", "Yes"), 1 / 3),
        ({"1": [0], "2": [1], "3": [2]}, ("No", "Yes", "Yes"), 1 / 3),  # the parent's own answer decides
        ({1: [0], 2: ["1"]}, ("Yes", "Yes"), 1.0),
    ],
)
def test_a_child_of_no_is_no(parents, replies, expected):
    assert alignment(parents, **{f"q{i}": reply for i, reply in enumerate(replies, start=1)}) == pytest.approx(expected)


def test_all_questions_of_all_images_are_asked_at_once():
    end = ". Please answer 'Yes' or 'No' only."
    model = Said({("black", f"a?{end}"): "No", ("white", f"a?{end}"): "Yes", ("white", f"b?{end}"): "Yes"})
    items = [item(questions={"1": "a?"}, dependencies={"1": [0]})]
    items.append(item(questions={"1": "a?", "2": "b?"}, dependencies={"1": [0], "2": [0]}))
    assert OneigAlignment(model=model).fields([BLACK, WHITE], items) == [{"alignment": 0.0}, {"alignment": 1.0}]
    assert model.calls == [(3, 128)]


@pytest.mark.parametrize(
    ("scorer", "extra", "message"),
    [
        (LongtextOcr, {"language": "en"}, "longtext_ocr: the text of 007 must be a list of texts, got None"),
        (LongtextOcr, {"text": "a", "language": "en"}, "the text of 007 must be a list of texts, got 'a'"),
        (LongtextOcr, {"text": ["a"]}, "longtext_ocr: the language of 007 must be en or zh, got None"),
        (OneigText, {"text": ["a"]}, r"oneig_text: the text of 007 must be a cell of text_content.csv, got \['a'\]"),
        (OneigAlignment, {}, "oneig_alignment: 007 must have questions and dependencies, got {}"),
        (OneigAlignment, {"questions": "{}", "dependencies": "{}"}, "007 must have questions and dependencies, got"),
        (
            OneigAlignment,
            {"questions": {"1": "a?", "2": "b?"}, "dependencies": {"1": [0]}},
            "each question of 007 must have its dependencies, got questions 1, 2 and dependencies of 1$",
        ),
        (
            OneigAlignment,
            {"questions": {"1": "a?"}, "dependencies": {"1": [3]}},
            "a question of 007 must depend on another one, got 3",
        ),
    ],
)
def test_a_prompt_without_what_the_scorer_needs_is_refused(scorer, extra, message):
    model = Said({})
    with pytest.raises(ValueError, match=message):
        scorer(model=model).fields([BLACK], [item(**extra)])
    assert not model.calls
