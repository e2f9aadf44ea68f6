"""LongText-Bench, in English and Chinese: long texts within images, read back by a vision-language model (X-Omni)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from pipeline.evaluation.benchmarks import Column, layouts
from pipeline.evaluation.benchmarks.official import (
    Call,
    External,
    ImageOf,
    Item,
    Metric,
    OfficialBenchmark,
    Source,
    SourceFile,
    Value,
)
from pipeline.evaluation.benchmarks.records import Values, json_lines, wrong
from pipeline.evaluation.benchmarks.statistics import ratio_of_sums

COMMIT = "2b8237bb3789638c290eeda3e83ed81bd3652c3b"
CATEGORIES = ("sign", "label", "print", "webpage", "slide", "poster", "caption", "dialogue")
IMAGE = re.compile(r"(\d{4})_([1-9]\d*)\.png$")
MERGE = 'cat "$0"/results_chunk*.jsonl > "$0/results.jsonl"'
FIELDS = ("matched", "words")


def parse(files: Mapping[str, Path], *, language: str) -> list[Item]:
    """The prompts, each with the texts that its image must show. Raises ValueError where a line has another format."""
    (path,) = files.values()
    items = []
    keys = {"prompt_id": int, "prompt": str, "category": str, "length": str, "text": list}
    for _, record in json_lines(path, keys):  # prompt_id is not the number of the line
        extra = {"text": record["text"], "language": language, "length": record["length"]}
        name = f"{record['prompt_id']:04d}"
        items.append(Item(id=name, prompt=record["prompt"], category=record["category"], extra=extra))
    return items


def layout(root: Path, items: Sequence[Item], images: Mapping[str, ImageOf], seeds: int) -> None:
    """0000_1.png to 0000_4.png: the prompt_id, and the number of the image from 1."""
    image_of = layouts.only(images)
    for item in items:
        for seed in range(seeds):
            layouts.link(image_of(item, seed), root / f"{item.id}_{seed + 1}.png")


def commands(call: Call, *, language: str) -> list[list[str]]:
    """Reads the texts with one process per GPU, joins the files of the processes and counts the words."""
    read = ["env", "--chdir=textbench", call.python, "-m", "torch.distributed.run"]
    read += ["--nnodes=1", f"--nproc_per_node={call.options.get('processes', '1')}", "evaluate_text_reward.py"]
    read += ["--sample_dir", str(call.images), "--output_dir", str(call.out), "--mode", language]
    count = [call.python, "textbench/summary_scores.py", str(call.out / "results.jsonl"), "--mode", language]
    return [read, ["sh", "-c", MERGE, str(call.out)], count]


def read(out: Path, items: Sequence[Item], arm: str) -> list[Value]:
    """`matched` and `words` of each image in results.jsonl. Raises ValueError for a line that is wrong."""
    path = out / "results.jsonl"
    values = Values(path, items)
    keys = {"image": str, "prompt": str, "match_word_count": int, "gt_word_count": int}
    for line, record in json_lines(path, keys):
        item, seed = values.image(line, IMAGE, "an image", record["image"], "0000_1.png")
        if record["prompt"] != item.prompt:
            raise wrong(path, line, f"have the prompt of {item.id}", record["prompt"])
        matched, words = record["match_word_count"], record["gt_word_count"]
        if not 0 <= matched <= words or not words:
            raise wrong(path, line, "find at most the words that are asked for", [matched, words])
        values.add(line, item.id, int(seed) - 1, matched=float(matched), words=float(words))
    return values.found


def _benchmark(name: str, title: str, language: str, file: str, sha256: str) -> OfficialBenchmark:
    note = "LongText-Bench is the share of the words asked for that a vision-language model reads in the image."
    return OfficialBenchmark(
        name=name,
        title=title,
        about="Whether long texts within an image can be read; extra words cost nothing.",
        source=Source(
            site="github",
            repository="X-Omni-Team/X-Omni",
            revision=COMMIT,
            files=(SourceFile(path=f"textbench/{file}", sha256=sha256),),
            licence="Apache-2.0, prompts and scorer",
            shipped=True,
        ),
        parse=partial(parse, language=language),
        counts=dict.fromkeys(CATEGORIES, 20),
        seeds=4,
        metrics=(
            Metric(
                column=Column(name, title, 3, better="higher", note=note),
                scorer="longtext_ocr",
                fields=FIELDS,
                statistic=ratio_of_sums,
            ),
            Metric(
                column=Column(f"{name}_official", f"{title} by its own code", 3, better="higher"),
                scorer="longtext_official",
                fields=FIELDS,
                statistic=ratio_of_sums,
            ),
        ),
        external=(
            External(
                name="longtext_official",
                version=COMMIT,
                layout=layout,
                commands=partial(commands, language=language),
                parse=read,
                note="The scorer needs a CUDA device, transformers 4.52 and the commands env and sh. Of the reader's"
                ' own phrases it removes "No text recognized." but leaves "addCriterion" in the text.',
            ),
        ),
    )


LONGTEXT = _benchmark(
    "longtext",
    "LongText-Bench",
    "en",
    "text_prompts.jsonl",
    "a2130769e72bd8560470a066114cdac87f80f1eb071ba6bc0f7033225a9be0d8",
)
LONGTEXT_ZH = _benchmark(
    "longtext_zh",
    "LongText-Bench-ZH",
    "zh",
    "text_prompts_zh.jsonl",
    "6512cd121ac093e8113e114d76eb2c0ce967c220b18e2049e1063554ce496758",
)
