"""The caption grammar: six tasks in the spirit of GenEval (arXiv 2310.11513), and their disjoint splits."""

import hashlib
import random
import re
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product

TASKS = ("single_object", "two_objects", "counting", "colors", "position", "color_attribution")
SPLITS = ("train", "validation", "evaluation")

COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond")
BACKGROUNDS = ("white", "grey", "black")
COUNTS = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4}
RELATIONS = ("left of", "right of", "above", "below")

# A combination replaces these relations by the opposite one and exchanges the objects.
_MIRROR = {"right of": "left of", "below": "above"}

# Share of each task's combinations held out for (validation, evaluation). Tasks with few combinations give more.
_HELD_OUT = {
    "single_object": (0.10, 0.45),
    "counting": (0.10, 0.30),
    "colors": (0.10, 0.30),
    "two_objects": (0.10, 0.30),
    "position": (0.10, 0.30),
    "color_attribution": (0.10, 0.20),
}


@dataclass(frozen=True)
class Subject:
    """What a caption asks of one kind of object; `color` None means any."""

    shape: str
    color: str | None = None
    count: int = 1


@dataclass(frozen=True)
class Caption:
    """A parsed caption; `background` None means any."""

    task: str
    subjects: tuple[Subject, ...]
    relation: str | None = None
    background: str | None = None

    def text(self) -> str:
        """The caption in words, e.g. "a red star and a blue circle on black"."""
        joint = f" {self.relation or 'and'} "
        words = joint.join(_phrase(subject) for subject in self.subjects)
        return f"{words} on {self.background}" if self.background else words

    def combination(self) -> tuple:
        """The scene that the caption asks for, equal for two wordings of one scene; splits share no combination."""
        subjects, relation = self.subjects, self.relation
        if relation in _MIRROR:
            subjects, relation = subjects[::-1], _MIRROR[relation]
        elif relation is None:
            subjects = tuple(sorted(subjects, key=lambda s: (s.color or "", s.shape)))
        return self.task, subjects, relation, self.background


def _phrase(subject: Subject) -> str:
    name = " ".join(filter(None, (subject.color, subject.shape)))
    if subject.count == 1:
        return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    number = next(word for word, count in COUNTS.items() if count == subject.count)
    return f"{number} {name}{'es' if subject.shape == 'cross' else 's'}"


_SUBJECT = rf"({'|'.join(COUNTS)}) (?:({'|'.join(COLORS)}) )?({'|'.join(SHAPES)})(?:e?s)?"
_CAPTION = re.compile(rf"^{_SUBJECT}(?: (and|{'|'.join(RELATIONS)}) {_SUBJECT})?(?: on ({'|'.join(BACKGROUNDS)}))?$")


def parse(text: str) -> Caption:
    """Reads a caption of the grammar.

    Raises:
        ValueError: The text is no caption of the grammar.
    """
    match = _CAPTION.match(text)
    caption = _caption(match) if match else None
    if caption is None or caption.text() != text:
        raise ValueError(f"a caption must follow the scene grammar, like 'a red star on black', got {text!r}")
    return caption


def _caption(match: re.Match) -> Caption | None:
    number, color, shape, joint, number_2, color_2, shape_2, background = match.groups()
    first = Subject(shape, color, COUNTS[number])
    if joint is None:
        task = "counting" if first.count > 1 else "colors" if color else "single_object"
        return Caption(task, (first,), None, background)
    second = Subject(shape_2, color_2, COUNTS[number_2])
    if first.count > 1 or second.count > 1 or shape == shape_2:
        return None
    if joint != "and":
        return None if color or color_2 else Caption("position", (first, second), joint, background)
    if color and color_2:
        return None if color == color_2 else Caption("color_attribution", (first, second), None, background)
    return None if color or color_2 else Caption("two_objects", (first, second), None, background)


def task(text: str) -> str:
    """The task of a caption, one of TASKS."""
    return parse(text).task


def words() -> list[str]:
    """Every word the grammar can say, sorted."""
    return sorted({word for captions in _combinations().values() for c in captions for word in c.text().split()})


@cache
def _combinations() -> dict[str, tuple[Caption, ...]]:
    grounds = (None, *BACKGROUNDS)
    pairs = tuple(permutations(SHAPES, 2))
    return {
        "single_object": tuple(Caption("single_object", (Subject(s),), None, g) for s, g in product(SHAPES, grounds)),
        "two_objects": tuple(
            Caption("two_objects", (Subject(a), Subject(b)), None, g) for (a, b), g in product(pairs, grounds)
        ),
        "counting": tuple(
            Caption("counting", (Subject(s, c, n),), None, g)
            for s, c, n, g in product(SHAPES, (None, *COLORS), (2, 3, 4), grounds)
        ),
        "colors": tuple(Caption("colors", (Subject(s, c),), None, g) for s, c, g in product(SHAPES, COLORS, grounds)),
        "position": tuple(
            Caption("position", (Subject(a), Subject(b)), r, g) for (a, b), r, g in product(pairs, RELATIONS, grounds)
        ),
        "color_attribution": tuple(
            Caption("color_attribution", (Subject(a, c), Subject(b, d)), None, g)
            for (a, b), (c, d), g in product(pairs, tuple(permutations(COLORS, 2)), grounds)
        ),
    }


@cache
def split(name: str) -> dict[str, tuple[Caption, ...]]:
    """All captions of a split by task. Splits share no combination, in any wording.

    Raises:
        ValueError: The split is unknown.
    """
    if name not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {name!r}")
    result = {}
    for task_name, captions in _combinations().items():
        order = sorted({c.combination() for c in captions}, key=lambda c: hashlib.sha256(repr(c).encode()).digest())
        validation, evaluation = (round(share * len(order)) for share in _HELD_OUT[task_name])
        members = {
            "validation": order[:validation],
            "evaluation": order[validation : validation + evaluation],
            "train": order[validation + evaluation :],
        }[name]
        kept = set(members)
        result[task_name] = tuple(c for c in captions if c.combination() in kept)
    return result


def sample(split_name: str, count: int, seed: int) -> list[str]:
    """Draws distinct captions of one split, the tasks as even as their sizes allow.

    Args:
        split_name: One of SPLITS.
        count: How many captions.
        seed: Seed of the order within each task.

    Raises:
        ValueError: The split holds fewer captions than asked for.
    """
    rng = random.Random(seed)
    queues = {name: rng.sample(captions, len(captions)) for name, captions in split(split_name).items()}
    available = sum(map(len, queues.values()))
    if not 1 <= count <= available:
        raise ValueError(f"prompts must be between 1 and {available} for the {split_name} captions, got {count}")
    chosen: list[str] = []
    while len(chosen) < count:
        # The task with the longest captions first, so that a small draw has its captions too.
        for name in reversed(TASKS):
            if queues[name] and len(chosen) < count:
                chosen.append(queues[name].pop().text())
    return chosen
