"""DPG-Bench: long, dense prompts, checked question by question by a VQA model (Hu et al., arXiv 2403.05135)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.evaluation.benchmarks import Column, layouts
from pipeline.evaluation.benchmarks.official import (
    SHIPPED,
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
from pipeline.evaluation.benchmarks.records import Values, json_lines, lines, number, wrong
from pipeline.evaluation.benchmarks.statistics import mean_times_100

COMMIT = "3c228f1dc6c4d3cad0a47493816151a419f14db3"
PROMPTS = "prompts.jsonl"
SEEDS = 4
FIRST = "partiprompts97"  # the prompt of the first row of dpg_bench.csv, which the scorer skips
DOUBLE_FIRST_ROW = SHIPPED / "recipes" / "dpg" / "double_first_row.py"
SUMMARY = "Model: "  # the line after the images' lines


def parse(files: Mapping[str, Path]) -> list[Item]:
    """The prompts unchanged, with the white space at their ends. Raises ValueError where a line has another format."""
    records = json_lines(files[PROMPTS], {"item_id": str, "prompt": str})
    return [Item(id=record["item_id"], prompt=record["prompt"]) for _, record in records]


def layout(root: Path, items: Sequence[Item], images: Mapping[str, ImageOf], seeds: int) -> None:
    """<item_id>.png, a grid of the four images; the scorer would take any other file for a broken image."""
    image_of = layouts.only(images)
    for item in items:
        layouts.grid([image_of(item, seed) for seed in range(seeds)], root / f"{item.id}.png")


def commands(call: Call) -> list[list[str]]:
    """Asks the questions about every image; the option `fix_first_row` repeats the first row, which the scorer skips.

    Raises:
        ValueError: The images are not square, as the scorer assumes, or the option is not true or false.
    """
    if call.height != call.width:
        raise ValueError(f"dpg must have square images, got {call.height} x {call.width}")
    fix = call.options.get("fix_first_row", "false").lower()
    if fix not in ("true", "false"):
        raise ValueError(f"fix_first_row must be true or false, got {call.options['fix_first_row']!r}")
    questions, before = "dpg_bench/dpg_bench.csv", []
    if fix == "true":
        fixed = str(call.out / "dpg_bench.csv")
        before.append([call.python, str(DOUBLE_FIRST_ROW), questions, fixed])
        questions = fixed
    processes = call.options.get("processes", "1")
    ask = [call.python, "-m", "accelerate.commands.launch", "--num_machines", "1", "--num_processes", processes]
    ask += [*(["--multi_gpu"] if processes != "1" else []), "--mixed_precision", "fp16"]
    ask += ["dpg_bench/compute_dpg_bench.py", "--image-root-path", str(call.images), "--resolution", str(call.height)]
    ask += ["--pic-num", str(SEEDS), "--csv", questions, "--res-path", str(call.out / "dpg.txt")]
    return [*before, ask]


def read(out: Path, items: Sequence[Item], arm: str) -> list[Value]:
    """`score` of each image in dpg.txt, above its summary. Raises ValueError for a line that is wrong."""
    path = out / "dpg.txt"
    values = Values(path, items)
    for line, text in lines(path):
        if text.startswith(SUMMARY):
            break
        image, *numbers = text.rsplit(", ", SEEDS + 1)
        if len(numbers) != SEEDS + 1:
            raise wrong(path, line, f"be an image, {SEEDS} scores and their mean", text)
        *scores, mean = (number(path, line, "score", one) for one in numbers)
        if not math.isclose(mean, sum(scores) / SEEDS, abs_tol=1e-9):
            raise wrong(path, line, f"end with the mean of its {SEEDS} scores", text)
        for seed, score in enumerate(scores):
            values.add(line, Path(image).stem, seed, score=score)
    return values.found


DPG = OfficialBenchmark(
    name="dpg",
    title="DPG-Bench",
    about="How many of the details of a long prompt a VQA model finds in the image.",
    source=Source(
        site="github",
        repository="TencentQQGYLab/ELLA",
        revision=COMMIT,
        # made from the files dpg_bench/prompts/<item_id>.txt, each text unchanged
        files=(SourceFile(path=PROMPTS, sha256="b71b8072c180a306c923c4fa0d7c13bfc6f4b7bc5071f9dc8d5e316348a7a5cb"),),
        licence="Apache-2.0, prompts and scorer",
        shipped=True,
    ),
    parse=parse,
    counts={"": 1065},
    seeds=SEEDS,
    metrics=(
        Metric(
            column=Column(
                "dpg",
                "DPG-Bench",
                2,
                better="higher",
                note="DPG-Bench is 100 x the share of questions about the prompt that a VQA model answers with yes.",
            ),
            scorer="dpg",
            fields=("score",),
            statistic=mean_times_100,
            lost=(FIRST,),
        ),
    ),
    external=(
        External(
            name="dpg",
            version=COMMIT,
            layout=layout,
            commands=commands,
            parse=read,
            note=f"The scorer skips the first row of its questions. So {FIRST} fails and 1,064 of 1,065 prompts count;"
            " with the option fix_first_row: true all count. The scorer's scores by category cover only the last image"
            " of a prompt and are not read. Several `processes` write to one file at once: broken lines are refused.",
        ),
    ),
    published=(qwen_image("dpg", 88.30),),
)
