"""Makes the images of every arm, or takes them from the cache, and puts them into one folder."""

from __future__ import annotations

import platform
from pathlib import Path

from pipeline import artifacts, leftovers
from pipeline.evaluation import images, samples
from pipeline.evaluation.images import Origin
from pipeline.evaluation.inputs import Inputs
from pipeline.evaluation.samples import ImageCache
from pipeline.progress import Progress


def generate(given: Inputs, folder: Path, progress: Progress) -> None:
    """Writes the images of every arm on the same prompts from the same noise, whole or not at all.

    Each finished shard of each arm is cached. So a killed generation continues after its last finished shard, and an
    evaluation makes only the shards that no earlier one has made. When the cache exceeds `runtime.cache_limit_gb`, the
    least recently used shards of earlier evaluations are deleted.

    Args:
        given: What the arms are made of.
        folder: Where the images go; its earlier content is replaced.
        progress: Shows the progress.

    Raises:
        ValueError: As `Inputs.load` does.
    """
    settings = given.params.evaluation
    drawn = samples.draws(
        given.prompts, settings.seed, settings.batch, settings.diversity_prompts, settings.diversity_seeds
    )
    store = ImageCache(lambda arm, shard: given.sampler.images(arm, shard), given.origin, given.adapter_digests)
    forwards = drawn.images * sum(arm.nfe for arm in given.arms)
    what = f"{drawn.images} images of {len(given.arms)} arms"
    with artifacts.atomic_dir(folder) as partial, progress(total=forwards, what=what, unit="forward") as bar:
        for arm in given.arms:
            (partial / arm.name).mkdir()
        for shard, name in drawn.files.items():  # the arms take turns, so that each prompt is encoded once
            for arm in given.arms:
                artifacts.link_or_copy(store.file(arm, shard), partial / arm.name / name)
                bar.update(arm.nfe * len(shard.prompts))
        teacher = given.params.teacher
        content = images.index(given.arms, drawn, teacher.height, teacher.width, _origin(given))
        artifacts.write_json(partial / images.INDEX, content)
    leftovers.trim(given.params.runtime.cache_limit_gb, store.used)


def _origin(given: Inputs) -> Origin:
    return Origin(
        given.teacher_digest,
        given.bundle_digest,
        given.adapter_digests,
        given.bundle.path,
        {"Python": platform.python_version(), **given.origin["packages"]},
        given.schedule,
        given.params.teacher.steps,
        {phase.name: phase.steps for phase in given.bundle.phases},
    )
