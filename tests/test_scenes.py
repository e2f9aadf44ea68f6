"""Captions, renderer and checker agree with each other."""

import random
from dataclasses import replace

import numpy as np
import pytest

from pipeline.scenes import captions, checker, renderer
from pipeline.scenes.captions import BACKGROUNDS, COLORS, SHAPES, TASKS, Caption


@pytest.fixture(scope="module")
def rendered():
    """1,000 captions, the tasks equally often, each with a rendered image."""
    rng = random.Random(0)
    everything = {t: [c for s in captions.SPLITS for c in captions.split(s)[t]] for t in TASKS}
    drawn = [rng.choice(everything[TASKS[i % len(TASKS)]]) for i in range(1000)]
    return drawn, np.stack([renderer.render(renderer.layout(caption, rng)) for caption in drawn])


def one_attribute_changed(caption: Caption, rng: random.Random) -> Caption:
    """The caption with another shape, colour, count, relation or background, still within its task."""
    changes = []
    first, *others = caption.subjects
    taken = {subject.shape for subject in caption.subjects}
    shape = rng.choice([s for s in SHAPES if s not in taken])
    changes.append(replace(caption, subjects=(replace(first, shape=shape), *others)))
    if first.color:
        used = {subject.color for subject in caption.subjects}
        color = rng.choice([c for c in COLORS if c not in used])
        changes.append(replace(caption, subjects=(replace(first, color=color), *others)))
    if caption.task == "color_attribution":
        second = others[0]
        swapped = (replace(first, color=second.color), replace(second, color=first.color))
        changes.append(replace(caption, subjects=swapped))
    if caption.task == "counting":
        count = rng.choice([n for n in (2, 3, 4) if n != first.count])
        changes.append(replace(caption, subjects=(replace(first, count=count),)))
    if caption.relation:
        relation = rng.choice([r for r in captions.RELATIONS if r != caption.relation])
        changes.append(replace(caption, relation=relation))
    if caption.background:
        changes.append(replace(caption, background=rng.choice([b for b in BACKGROUNDS if b != caption.background])))
    return rng.choice(changes)


def test_checker_agrees_with_rendered_captions(rendered):
    drawn, images = rendered
    assert checker.passes(images, [caption.text() for caption in drawn]).mean() >= 0.99


def test_checker_refuses_captions_with_one_attribute_changed(rendered):
    drawn, images = rendered
    rng = random.Random(1)
    changed = [one_attribute_changed(caption, rng).text() for caption in drawn]
    assert (~checker.passes(images, changed)).mean() >= 0.99


def test_checker_reads_every_attribute():
    caption = captions.parse("a red star left of a blue circle on grey".replace("red ", "").replace("blue ", ""))
    reading = checker.read(renderer.render(renderer.layout(caption, random.Random(0))))
    assert {thing.shape for thing in reading.found} == {"star", "circle"}
    assert reading.background == "grey" and reading.clear


@pytest.mark.parametrize("image", [np.zeros((64, 64, 3)), np.full((64, 64, 3), 200), "noise"])
def test_checker_passes_nothing_on_empty_or_noisy_images(image):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    image = np.asarray(noise if isinstance(image, str) else image, dtype=np.uint8)
    assert not any(checker.check(image, caption) for caption in captions.sample("evaluation", 60, 0))


def test_every_caption_is_read_back():
    for name in captions.SPLITS:
        for task, members in captions.split(name).items():
            for caption in members:
                assert captions.parse(caption.text()) == caption and captions.task(caption.text()) == task


def test_splits_share_no_combination_in_whatever_words():
    seen = [{c.combination() for members in captions.split(name).values() for c in members} for name in captions.SPLITS]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]
    left, right = captions.parse("a star left of a ring"), captions.parse("a ring right of a star")
    assert left.combination() == right.combination()


def test_world_is_as_large_as_promised():
    assert len(COLORS) >= 8 and len(SHAPES) >= 7 and len(BACKGROUNDS) >= 3 and len(TASKS) == 6
    assert len(captions.sample("evaluation", 504, 0)) == len(set(captions.sample("evaluation", 504, 0))) == 504


def test_sample_balances_the_tasks_and_depends_on_the_seed():
    drawn = captions.sample("train", 60, 0)
    assert all(sum(captions.task(c) == task for c in drawn) == 10 for task in TASKS)
    assert drawn == captions.sample("train", 60, 0) != captions.sample("train", 60, 1)
    assert captions.sample("train", 6, 0) == drawn[:6]


@pytest.mark.parametrize("count", [0, 10**6])
def test_sample_refuses_more_than_there_are(count):
    with pytest.raises(ValueError, match=rf"prompts must be between 1 and \d+ for the train captions, got {count}"):
        captions.sample("train", count, 0)


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split must be one of train, validation, evaluation, got 'test'"):
        captions.split("test")


@pytest.mark.parametrize(
    "text", ["", "a dog", "two red star", "a star and a star", "a red star and a ring", "two star", "a stars"]
)
def test_captions_outside_the_grammar_are_refused(text):
    with pytest.raises(ValueError, match="a caption must follow the scene grammar"):
        captions.parse(text)


def test_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="shape must be one the renderer draws, got 'dog'"):
        renderer.outline("dog")


def test_objects_stay_inside_their_cells():
    assert renderer.RADIUS[1] * 1.05 + renderer.JITTER < renderer.SIZE / 4
