"""The files that official scorers read: their names, their formats, and where each image of a prompt lies in a grid."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation.benchmarks.table import BENCHMARKS
from tests import benchmark_case as case
from tests.benchmark_case import COLOURS, SIZE


def laid_out(tmp_path, name, external, items, arms=("teacher",), seeds=None):
    """The root that a scorer's layout filled, with the images that it was made of by arm."""
    scorer = next(scorer for scorer in BENCHMARKS[name].external if scorer.name == external)
    images = {arm: case.Images(tmp_path / "single" / arm) for arm in arms}
    scorer.layout(tmp_path / "root", items, images, seeds or BENCHMARKS[name].seeds)
    return tmp_path / "root", images[arms[0]]


def files(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def colour(image, box):
    """The mean colour of a box, but for its edge: a lossy format mixes neighbours there."""
    left, top, right, bottom = box
    return np.asarray(image.convert("RGB").crop((left + 4, top + 4, right - 4, bottom - 4))).mean(axis=(0, 1))


def test_geneval_has_a_folder_a_prompt_with_its_line_of_metadata(tmp_path):
    items = case.items("geneval", 1)[:2]
    root, image_of = laid_out(tmp_path, "geneval", "geneval", items)
    names = [f"{seed:04d}.png" for seed in range(4)]
    assert files(root) == sorted(
        f"{item.id}/{name}" for item in items for name in ["metadata.jsonl", *(f"samples/{name}" for name in names)]
    )
    assert (root / items[1].id / "samples" / "0002.png").samefile(image_of(items[1], 2))
    lines = case.shipped("geneval")["evaluation_metadata.jsonl"].read_text().splitlines(keepends=True)
    for item in items:
        assert (root / item.id / "metadata.jsonl").read_text() == lines[int(item.id)]


def test_every_line_of_geneval_is_written_as_it_was():
    lines = case.shipped("geneval")["evaluation_metadata.jsonl"].read_text().splitlines()
    assert [json.dumps(item.extra["metadata"]) for item in case.items("geneval")] == lines


def test_dpg_has_one_grid_a_prompt_and_nothing_else(tmp_path):
    items = [item for item in case.items("dpg") if item.id in ("7", "partiprompts97")]
    root, _ = laid_out(tmp_path, "dpg", "dpg", items)
    assert files(root) == ["7.png", "partiprompts97.png"]
    r = SIZE  # the boxes of compute_dpg_bench.py
    boxes = [(0, 0, r, r), (r, 0, r * 2, r), (0, r, r, r * 2), (r, r, r * 2, r * 2)]
    with Image.open(root / "7.png") as grid:
        assert grid.size == (2 * r, 2 * r)
        for box, expected in zip(boxes, COLOURS, strict=True):
            assert colour(grid, box).tolist() == list(expected)


def test_oneig_has_a_folder_an_arm_within_each_class(tmp_path):
    items = BENCHMARKS["oneig"].parse(case.oneig_files(tmp_path / "files"))
    root, _ = laid_out(tmp_path, "oneig", "oneig_diversity", items, arms=("teacher", "student"))
    assert files(root) == sorted(
        f"{item.category}/{arm}/{item.id[-3:]}.webp" for item in items for arm in ("teacher", "student")
    )
    columns, rows = 2, 2  # the boxes of split_mxn_grid
    with Image.open(root / "human" / "student" / "000.webp") as grid:
        width, height = grid.width // columns, grid.height // rows
        found = [
            colour(grid, (j * width, i * height, (j + 1) * width, (i + 1) * height))
            for i in range(rows)
            for j in range(columns)
        ]
        assert (grid.mode, grid.format, width, height) == ("RGB", "WEBP", SIZE, SIZE)
    np.testing.assert_allclose(found, COLOURS, atol=6)


@pytest.mark.parametrize(
    ("external", "folders"),
    [
        ("oneig_style", {"anime"}),
        ("oneig_reasoning", {"reasoning"}),
        ("oneig_text_official", {"text"}),
        ("oneig_alignment_official", {"anime", "human", "object"}),
        ("oneig_diversity", {"anime", "human", "object", "text", "reasoning"}),
    ],
)
def test_a_scorer_of_oneig_gets_the_folders_that_it_reads(tmp_path, external, folders):
    items = BENCHMARKS["oneig"].parse(case.oneig_files(tmp_path / "files"))
    root, _ = laid_out(tmp_path, "oneig", external, items)
    assert {path.name for path in root.iterdir()} == folders


def test_longtext_counts_images_from_1(tmp_path):
    items = case.items("longtext")[:1] + case.items("longtext")[-1:]
    root, image_of = laid_out(tmp_path, "longtext", "longtext_official", items)
    assert files(root) == [f"{name}_{i}.png" for name in ("0000", "0199") for i in (1, 2, 3, 4)]
    assert (root / "0199_1.png").samefile(image_of(items[1], 0))


def test_hpsv2_has_jpeg_files_by_style(tmp_path):
    styles = {f"{style}.json": tmp_path / f"{style}.json" for style in BENCHMARKS["hpsv2"].counts}
    for path in styles.values():
        path.write_text('["one", "two"]')
    items = BENCHMARKS["hpsv2"].parse(styles)
    root, _ = laid_out(tmp_path, "hpsv2", "hpsv2_package", items)
    assert files(root) == sorted(f"{style}/0000{i}.jpg" for style in BENCHMARKS["hpsv2"].counts for i in (0, 1))
    with Image.open(root / "photo" / "00001.jpg") as image:
        assert image.format == "JPEG" and {layer[1:3] for layer in image.layer} == {(1, 1)}, "full colour resolution"
        assert image.quantization[0][0] == 2, "the first step of quality 95"
        np.testing.assert_allclose(np.asarray(image).mean(axis=(0, 1)), COLOURS[0], atol=2)


def test_the_selftest_puts_two_images_side_by_side(tmp_path):
    items = case.items("selftest")[:1]
    root, _ = laid_out(tmp_path, "selftest", "selftest_red", items)
    with Image.open(root / "0.png") as grid:
        assert files(root) == ["0.png"] and grid.size == (2 * SIZE, SIZE)
        assert colour(grid, (SIZE, 0, 2 * SIZE, SIZE)).tolist() == list(COLOURS[1])


def commands(name, external, call):
    scorer = next(scorer for scorer in BENCHMARKS[name].external if scorer.name == external)
    assert scorer.needs.keys() <= call.options.keys()
    return scorer.commands(call)


def test_geneval_is_told_its_images_results_and_detector(tmp_path):
    call = case.call(tmp_path, detector="/weights", config="/mask2former.py")
    judge, summary = commands("geneval", "geneval", call)
    assert judge[:3] == ["python3", "evaluation/evaluate_images.py", str(call.images)]
    assert judge[3:7] == ["--outfile", str(call.out / "results.jsonl"), "--model-path", "/weights"]
    assert judge[7:] == ["--model-config", "/mask2former.py"]
    assert summary == ["python3", "evaluation/summary_scores.py", str(call.out / "results.jsonl")]
    assert "--model-config" not in commands("geneval", "geneval", case.call(tmp_path, detector="/weights"))[0]


def test_dpg_is_told_its_grid_and_never_writes_beside_the_images(tmp_path):
    call = case.call(tmp_path)
    (ask,) = commands("dpg", "dpg", call)
    pairs = dict(zip(ask, ask[1:], strict=False))
    assert pairs["--image-root-path"] == str(call.images) and pairs["--res-path"] == str(call.out / "dpg.txt")
    assert (pairs["--resolution"], pairs["--pic-num"], pairs["--num_processes"]) == (str(SIZE), "4", "1")
    assert pairs["--csv"] == "dpg_bench/dpg_bench.csv" and "--multi_gpu" not in ask
    assert "--multi_gpu" in commands("dpg", "dpg", case.call(tmp_path, processes="4"))[0]


def test_dpg_refuses_what_its_scorer_would_take_for_something_else(tmp_path):
    with pytest.raises(ValueError, match="dpg must have square images, got 32 x 48"):
        commands("dpg", "dpg", replace(case.call(tmp_path), width=48))
    with pytest.raises(ValueError, match="fix_first_row must be true or false, got 'yes'"):
        commands("dpg", "dpg", case.call(tmp_path, fix_first_row="yes"))


def test_dpg_can_keep_the_first_row(tmp_path):
    call = case.call(tmp_path, python=sys.executable, fix_first_row="True")
    fix, ask = commands("dpg", "dpg", call)
    (tmp_path / "dpg_bench").mkdir()
    text = (case.DATA / "dpg" / "made_up_dpg_bench.csv").read_text()
    (tmp_path / "dpg_bench" / "dpg_bench.csv").write_text(text)
    subprocess.run(fix, cwd=tmp_path, check=True)
    header, first, *rest = text.splitlines()
    assert (call.out / "dpg_bench.csv").read_text().splitlines() == [header, first, first, *rest]
    assert ask[ask.index("--csv") + 1] == str(call.out / "dpg_bench.csv")


@pytest.mark.parametrize(
    ("external", "module", "folder", "classes"),
    [
        ("oneig_style", "style", "anime", []),
        ("oneig_reasoning", "reasoning", "reasoning", []),
        ("oneig_text_official", "text", "text", []),
        ("oneig_alignment_official", "alignment", "", ["anime", "human", "object"]),
        ("oneig_diversity", "diversity", "", ["anime", "human", "object", "text", "reasoning"]),
    ],
)
def test_oneig_runs_one_module_a_dimension_for_all_arms(tmp_path, external, module, folder, classes):
    call = case.call(tmp_path)
    score, _ = commands("oneig", external, call)
    assert score[:5] == ["python3", "-m", f"scripts.{module}.{module}_score", "--mode", "EN"]
    assert score[5:7] == ["--image_dirname", str(call.images / folder)]
    rest = ["--model_names", "teacher", "student", "--image_grid", "2,2", "2,2"]
    assert score[7:] == rest + (["--class_items", *classes] if classes else [])


def test_oneig_in_chinese_asks_questions_about_multilingualism_too(tmp_path):
    score, _ = commands("oneig_zh", "oneig_alignment_official", case.call(tmp_path))
    assert score[4] == "ZH" and score[-4:] == ["anime", "human", "object", "multilingualism"]


def test_oneig_keeps_its_newest_results(tmp_path):
    call = case.call(tmp_path)
    (tmp_path / "results").mkdir()
    for kind in ("score", "prompt_score", "style_score"):
        for time in ("2026-01-02_10-00-00", "2026-01-10_09-00-00"):
            (tmp_path / "results" / f"style_{kind}_EN_{time}.csv").write_text(time)
    _, keep = commands("oneig", "oneig_style", call)
    subprocess.run(keep, cwd=tmp_path, check=True)
    assert files(call.out) == [f"style_{kind}_EN_2026-01-10_09-00-00.csv" for kind in ("prompt_score", "score")]
    (tmp_path / "results" / "style_score_EN_2026-01-10_09-00-00.csv").unlink()
    (tmp_path / "results" / "style_score_EN_2026-01-02_10-00-00.csv").unlink()
    assert subprocess.run(keep, cwd=tmp_path, capture_output=True).returncode != 0


def test_longtext_puts_the_files_of_its_processes_together(tmp_path):
    call = case.call(tmp_path, processes="2")
    read, merge, count = commands("longtext_zh", "longtext_official", call)
    assert read[:5] == ["env", "--chdir=textbench", "python3", "-m", "torch.distributed.run"]
    assert "--nproc_per_node=2" in read and read[-2:] == ["--mode", "zh"]
    for i in range(2):
        (call.out / f"results_chunk{i}.jsonl").write_text(f"{i}\n")
    subprocess.run(merge, cwd=tmp_path, check=True)
    assert (call.out / "results.jsonl").read_text() == "0\n1\n"
    assert count[1:3] == ["textbench/summary_scores.py", str(call.out / "results.jsonl")]


def test_the_package_of_hpsv2_prints_into_a_file(tmp_path):
    (tmp_path / "hpsv2.py").write_text("def evaluate(root, hps_version):\n    print(root, hps_version)\n")
    call = case.call(tmp_path, python=sys.executable)
    (command,) = commands("hpsv2", "hpsv2_package", call)
    subprocess.run(command, cwd=tmp_path, check=True)
    assert (call.out / "hpsv2.txt").read_text() == f"{call.images} v2.1\n"
    scorer = BENCHMARKS["hpsv2"].external[0]
    assert scorer.parse(call.out, [], "teacher") == []
