"""GenEval: objects, counts, colours and positions, checked by an object detector (Ghosh et al., arXiv 2310.11513)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
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
from pipeline.evaluation.benchmarks.published import qwen_image
from pipeline.evaluation.benchmarks.records import Values, json_lines, wrong
from pipeline.evaluation.benchmarks.statistics import mean_of_categories

COMMIT = "af4902f24d3ca90ebbb446dd9891a59e0f82725f"
METADATA = "evaluation_metadata.jsonl"
TAGS = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
IMAGE = re.compile(r"(\d+)/samples/(\d+)\.png$")


def parse(files: Mapping[str, Path]) -> list[Item]:
    """The prompts, each with the line of metadata for the scorer. Raises ValueError for another format."""
    items = []
    for line, metadata in json_lines(files[METADATA], {"tag": str, "include": list, "prompt": str}):
        name = f"{line - 1:05d}"  # the folder of the prompt's images
        extra = {"metadata": metadata}
        items.append(Item(id=name, prompt=metadata["prompt"], category=metadata["tag"], extra=extra))
    return items


def layout(root: Path, items: Sequence[Item], images: Mapping[str, ImageOf], seeds: int) -> None:
    """00000/metadata.jsonl and 00000/samples/0000.png to 0003.png, a folder for each prompt."""
    image_of = layouts.only(images)
    for item in items:
        for seed in range(seeds):
            layouts.link(image_of(item, seed), root / item.id / "samples" / f"{seed:04d}.png")
        text = json.dumps(item.extra["metadata"]) + "\n"
        (root / item.id / "metadata.jsonl").write_text(text, encoding="utf-8")


def commands(call: Call) -> list[list[str]]:
    """Detects and judges, then prints the official summary."""
    results = str(call.out / "results.jsonl")
    judge = [call.python, "evaluation/evaluate_images.py", str(call.images), "--outfile", results]
    judge += ["--model-path", call.options["detector"]]
    if "config" in call.options:
        judge += ["--model-config", call.options["config"]]
    return [judge, [call.python, "evaluation/summary_scores.py", results]]


def read(out: Path, items: Sequence[Item], arm: str) -> list[Value]:
    """`correct`, 1 or 0, of each image in results.jsonl, in any order. Raises ValueError for a line that is wrong."""
    path = out / "results.jsonl"
    values = Values(path, items)
    keys = {"filename": str, "tag": str, "prompt": str, "correct": bool}
    for line, record in json_lines(path, keys):
        item, seed = values.image(line, IMAGE, "a filename", record["filename"], "00000/samples/0000.png")
        if (record["tag"], record["prompt"]) != (item.category, item.prompt):
            raise wrong(path, line, f"have the tag and prompt of {item.id}", [record["tag"], record["prompt"]])
        values.add(line, item.id, int(seed), correct=float(record["correct"]))
    return values.found


def _of_tag(tag: str) -> Metric:
    column = Column(f"geneval_{tag}", f"GenEval, {tag.replace('_', ' ')}", 3, better="higher")
    return Metric(column=column, scorer="geneval", fields=("correct",), categories=(tag,))


GENEVAL = OfficialBenchmark(
    name="geneval",
    title="GenEval",
    about="Whether the objects that a short prompt names are there, in their number, colour and position.",
    source=Source(
        site="github",
        repository="djghosh13/geneval",
        revision=COMMIT,
        files=(
            SourceFile(
                path=f"prompts/{METADATA}", sha256="5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
            ),
        ),
        licence="MIT, prompts and scorer",
        shipped=True,
    ),
    parse=parse,
    counts=TAGS,
    seeds=4,
    metrics=(
        Metric(
            column=Column(
                "geneval",
                "GenEval",
                3,
                better="higher",
                note="GenEval is the share of images whose objects an object detector confirms: the mean of six tags.",
            ),
            scorer="geneval",
            fields=("correct",),
            statistic=mean_of_categories,
        ),
        *(_of_tag(tag) for tag in TAGS),
    ),
    external=(
        External(
            name="geneval",
            version=COMMIT,
            layout=layout,
            commands=commands,
            parse=read,
            needs={
                "detector": "folder of mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco.pth, which"
                " evaluation/download_models.sh fetches"
            },
            note="The scorer needs a CUDA device and mmdet 2.x from mmdet's repository, since the package lacks the"
            " detector's configuration; the option `config` can name this file too. With a checkpoint of mmdet"
            " 3 all scores are 0.",
        ),
    ),
    published=(qwen_image("geneval", 0.86),),
    sanity={"geneval_single_object": 0.5},
)
