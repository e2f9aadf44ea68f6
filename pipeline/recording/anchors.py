"""Anchors: other prompts, without target images, for which the student learns the base's own guided steps.

An anchor is the base's guided run from fresh noise in the student's few steps. With eight steps instead of twenty-five
it costs a third of a trajectory's forwards. Trajectories teach where the teacher's many steps lead. Anchors teach what
guidance does for prompts that were not recorded, so that adapters trained on one prompt still serve the others.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from pipeline.params import AnchorsParams, Params
from pipeline.partition import Partition
from pipeline.prompts import load_prompts
from pipeline.recording.trajectories import Recording

WORDS = (2, 9)  # fewest and most words of a random prompt


def random_prompts(words: Sequence[str], count: int, seed: int) -> list[str]:
    """Prompts of words in random order, which mean nothing and so need no author.

    Args:
        words: What to draw from.
        count: How many prompts.
        seed: Seed of the draw; the first prompts are the same for every count.

    Raises:
        ValueError: `words` is empty.
    """
    if not words:
        raise ValueError("anchors.prompts_file must name a text file, since the teacher's tokenizer has no whole words")
    rng = random.Random(seed)
    return [" ".join(rng.choices(words, k=rng.randint(*WORDS))) for _ in range(count)]


def texts(settings: AnchorsParams, words: Sequence[str]) -> list[str]:
    """The prompts that params.anchors asks for: of its file, or random `words`.

    Raises:
        ValueError: As `random_prompts` and `load_prompts` do.
    """
    if settings.prompts_file is None:
        return random_prompts(words, settings.prompts, settings.seed)
    return load_prompts(settings.prompts_file, settings.prompts, "train", settings.seed, "anchors")


def recording(params: Params, partition: Partition, words: Sequence[str]) -> Recording:
    """The runs that params.anchors asks for, in the student's steps.

    Args:
        params: All parameters.
        partition: The student's steps.
        words: The teacher's vocabulary, for random prompts.

    Raises:
        ValueError: As `texts` does.
    """
    settings = params.anchors
    whole = Recording.from_params(params, texts(settings, words))
    return replace(whole, seeds_per_prompt=1, seed=settings.seed, levels=partition.u)
