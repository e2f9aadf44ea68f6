"""How much of a wanted text was read in an image, as LongText-Bench and the text part of OneIG-Bench measure it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from pipeline.evaluation.benchmarks.statistics import Statistic

_LETTERS = "\u4e00-\u9fa5a-zA-Z0-9àâäéèêëîïôöùûüçÀÂÄÉÈÊËÎÏÔÖÙÛÜÇ"  # the letters that both benchmarks compare
_FOREIGN = re.compile(rf"[^{_LETTERS}\s]")
_SPACE = re.compile(r"\s+")
_CHINESE = re.compile("[\u4e00-\u9fff]")
LANGUAGES = ("en", "zh")


def longtext(wanted: Sequence[str], read: str, language: str) -> dict[str, float]:
    """LongText-Bench's counts of one image; its score is the sum of `matched` over the sum of `words` of all images.

    English is compared by words, whatever their case; Chinese is compared by characters. The order does not count, and
    extra text costs nothing.

    Args:
        wanted: The texts that the prompt asks for.
        read: The answer of the reading model. Of the model's own phrases only "No text recognized." is removed, as in
            the official code.
        language: "en" or "zh".

    Returns:
        `matched`: words that are wanted and read, each counted as often as both texts have it; `words`: wanted words.

    Raises:
        ValueError: The language is another one, or no word is wanted.
    """
    if language not in LANGUAGES:
        raise ValueError(f"the language must be en or zh, got {language!r}")
    wanted_words = _longtext_words(" ".join(wanted), language)
    if not wanted_words:
        raise ValueError(f"the wanted texts must have a word, got {list(wanted)}")
    read_words = _longtext_words(read.replace("No text recognized.", ""), language)
    return {"matched": float(matched(wanted_words, read_words)), "words": float(len(wanted_words))}


def oneig(wanted: str, read: str) -> dict[str, float]:
    """OneIG-Bench's text measures of one image, which `oneig_score` turns into the score.

    Letters keep their case. Whether words or characters are compared depends on whether the wanted text is Chinese.

    Args:
        wanted: The wanted text as the benchmark's file holds it: a list in Python's notation, whose brackets and
            quotes do not count.
        read: The answer of the reading model.

    Returns:
        `ed`: the edit distance in characters; `cr`: 1 if both texts are equal, else 0; `wac_matched`: words that are
        wanted and read; `wac_words`: words that are wanted.

    Raises:
        ValueError: No word is wanted.
    """
    for phrase in ("addCriterion", "No text recognized."):  # the reading model's own phrases
        read = read.replace(phrase, "")
    wanted_text, read_text = _oneig_text(wanted), _oneig_text(read)
    if not wanted_text:
        raise ValueError(f"the wanted text must have a word, got {wanted!r}")
    distance = levenshtein(read_text, wanted_text)
    chinese = _CHINESE.search(wanted_text)
    wanted_words, read_words = ((list(t) if chinese else t.split()) for t in (wanted_text, read_text))
    return {
        "ed": float(distance),
        "cr": float(distance == 0),
        "wac_matched": float(matched(wanted_words, read_words)),
        "wac_words": float(len(wanted_words)),
    }


def oneig_score(longest: float) -> Statistic:
    """OneIG-Bench's text score of all prompts.

    The rows hold `ed`, `cr`, `wac_matched` and `wac_words`. ED and CR are the means of `ed` and `cr`; WAC is the sum of
    matched words over the sum of wanted words. The score is 1 - min(L, ED) (1 - CR) (1 - WAC) / L. Scores of single
    prompts have no meaning: the mean of such scores is another number.

    Args:
        longest: L, the largest edit distance that counts, in characters: 100 in English, 50 in Chinese.
    """

    def score(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
        distance, complete, found, words = np.moveaxis(sums.sum(axis=1), -1, 0)
        prompts = counts.sum(axis=1)
        return 1 - np.minimum(longest, distance / prompts) * (1 - complete / prompts) * (1 - found / words) / longest

    return score


oneig_score_en = oneig_score(100)
oneig_score_zh = oneig_score(50)


def matched(wanted: Sequence[str], read: Sequence[str]) -> int:
    """How many words two texts share, each counted as often as both texts have it."""
    return sum((Counter(wanted) & Counter(read)).values())


def levenshtein(first: str, second: str) -> int:
    """The least number of insertions, deletions and replacements of characters that turn one text into the other."""
    letters, places = np.array(list(second)), np.arange(len(second) + 1)
    row = places
    for number, letter in enumerate(first, start=1):
        kept = np.minimum(row[:-1] + (letters != letter), row[1:] + 1)  # replace or keep, and delete
        best = np.concatenate(([number], kept))
        row = np.minimum.accumulate(best - places) + places  # and insert
    return int(row[-1])


def _longtext_words(text: str, language: str) -> list[str]:
    kept = _FOREIGN.sub("", text)
    return kept.lower().split() if language == "en" else list(_SPACE.sub("", kept))


def _oneig_text(text: str) -> str:
    kept = _FOREIGN.sub("", text)
    return _SPACE.sub("" if _CHINESE.search(kept) else " ", kept).strip()
