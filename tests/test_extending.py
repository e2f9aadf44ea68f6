"""docs/extending.md, walked through: one of each kind is added to a copy of a small project, and is used there."""

import json
import re
import shutil

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import artifacts
from pipeline.backbones.stock import StockBackbone
from tests.conftest import ROOT, Project, make_project, slow
from tests.growth import GROWTH
from tests.tiny import make_tiny_flux

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
RUN = """
from importlib import import_module

for stage in {stages}:
    import_module(f"stages.{{stage}}").main.main([], standalone_mode=False)
"""


def run(project: Project, *stages: str, then: str = "") -> str:
    """The last line that some stages and a piece of code print, in one process: importing torch takes the longest."""
    output = project.succeed("python", "-W", "ignore", "-c", RUN.format(stages=stages) + then)
    return output.splitlines()[-1] if output else ""


@pytest.fixture(scope="module")
@slow
def trained(tmp_path_factory):
    """A small project with a trained pair."""
    temporary = tmp_path_factory.mktemp("trained")
    project = make_project(temporary / "clone", temporary, make_tiny_flux)
    for key in ("train_slow.train_steps", "train_fast.train_steps"):
        project.change(key, 8)
    recording = ("cache_trajectories", "compute_partition", "cache_anchors")
    run(project, "check", *recording, "train_slow", "train_fast", "export_adapter")
    return project


@pytest.fixture
def grow(trained, tmp_path):
    """Adds kinds of growth, named by their headings, to a copy of the project."""

    def add(*kinds: str) -> Project:
        shutil.copytree(trained.folder, tmp_path / "clone")
        for kind in kinds:
            GROWTH[kind].add(tmp_path / "clone")
        return Project(tmp_path / "clone", tmp_path)

    return add


def test_every_kind_on_the_page_is_walked_through():
    assert re.findall(r"^## (.+)$", PAGE, flags=re.MULTILINE) == list(GROWTH)


def test_the_page_names_every_file_that_gets_an_entry():
    missing = [name for growth in GROWTH.values() for name, *_ in growth.entries if name not in PAGE]
    assert missing == ["pipeline/families/flux.py"], "which the page calls the family's"


def test_the_page_names_what_a_family_has_to_define():
    defined = {*StockBackbone.__abstractmethods__, *StockBackbone.__annotations__}
    assert not {name for name in defined if f"`{name}`" not in PAGE}


def test_an_added_family_is_found_and_records(trained, grow):
    project = grow("A model family")
    folder = project.folder / "artifacts" / "new"
    shutil.copytree(project.folder / "artifacts" / "teacher", folder)
    index = json.loads((folder / "model_index.json").read_text())
    artifacts.write_json(folder / "model_index.json", index | {"_class_name": "NewPipeline"})
    assert "teacher.family: 'flux' -> 'new'" in project.succeed("python", "-m", "pipeline.cli", "preset", "new")
    found = "from pipeline import backbones; print(backbones.family('artifacts/new').__name__)"
    assert run(project, "check", "cache_trajectories", then=found) == "NewBackbone"
    shards = list((trained.folder / "artifacts" / "trajectories").glob("shard-*.safetensors"))
    assert len(shards) == 3
    for shard in shards:
        own = load_file(project.folder / "artifacts" / "trajectories" / shard.name)
        assert all(torch.equal(own[name], states) for name, states in load_file(shard).items())


def test_an_added_objective_passes_the_check_and_trains(trained, grow):
    project = grow("An objective")
    project.change("training.objective", "new")
    run(project, "check", "train_slow")
    losses, others = (
        pd.read_csv(made.folder / "artifacts" / "train_slow" / "history.csv").loss for made in (project, trained)
    )
    assert len(losses) == 8 and (losses > 0).all() and losses[0] != others[0]
    assert losses.iloc[-1] < losses[0]


def test_an_added_rule_gives_a_partition_and_imports_a_pair(grow):
    project = grow("A partition rule")
    project.change("partition.rule", "new")
    pair = [f"artifacts/{phase}/adapter_model.safetensors" for phase in ("train_slow", "train_fast")]
    command = ["import", *pair, "--rule", "new", "--slow-steps", "2", "--fast-steps", "3"]
    run(project, "check", "compute_partition", then=f"from pipeline.cli import main; main({command})")
    split = json.loads((project.folder / "artifacts" / "partition" / "partition.json").read_text())
    assert split["rule"] == "new"
    assert [split["phases"][name]["steps"] for name in ("slow", "fast")] == [[0], [4, 6, 8]]
    imported = json.loads((project.folder / "imported" / "glance.json").read_text())
    assert imported["steps"] == [0, 1, 7, 8, 9], "of all the teacher's steps, and not of the recorded ones"


def test_added_rivals_are_arms_and_an_added_column_is_in_the_report(grow):
    project = grow("A rival", "A column of the comparison")
    project.change("train_controls.arms", ["new_rival"])
    project.change("evaluation.swaps", ["new_swap"])
    run(project, "check", "train_controls", "generate_images", "evaluate", "time_arms", "report")
    folder = project.folder / "artifacts" / "evaluation"
    rows = json.loads((folder / "metrics.json").read_text())["arms"]
    assert {name: rows[name]["nfe"] for name in ("new_rival", "new_swap", "new_base")} == {
        "new_rival": 4, "new_swap": 4, "new_base": 4,
    }  # fmt: skip
    assert rows["new_rival"]["worst_psnr"] <= rows["new_rival"]["psnr"]
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", (folder / "report.html").read_text(encoding="utf-8"))
    text = [re.sub("<[^>]+>", "", cell) for cell in cells]
    assert "Worst PSNR, dB" in text and f"{rows['new_base']['worst_psnr']:.1f}" in text
    assert not {"New rival", "New base", "New swap"} - {*text}


def test_an_added_layout_of_lora_files_is_read_and_an_added_format_is_exported(trained, grow):
    project = grow("A layout of LoRA files", "A format")
    pair = {"lora_A.weight": torch.ones(2, 32), "lora_B.weight": torch.ones(32, 2)}
    save_file({f"transformer.new.{half}": tensor for half, tensor in pair.items()}, project.folder / "new.safetensors")
    read = (
        "from pipeline import backbones; from pipeline.adapters import lora_files; "
        "print(*lora_files.read('new.safetensors', backbones.load('artifacts/teacher', 'cpu', parts=())))"
    )
    assert run(project, "export_adapter", then=read) == "x_embedder.lora_A.weight x_embedder.lora_B.weight"
    digests = [artifacts.folder_digest(made.folder / "artifacts" / "bundle") for made in (project, trained)]
    assert digests[0] == digests[1]
    project.succeed("python", "-m", "pipeline.cli", "export", "out", "--format", "new")
    assert [file.name for file in (project.folder / "out").iterdir()] == ["one.safetensors"]


def test_an_added_benchmark_is_scored_by_an_added_scorer(grow):
    project = grow("A scorer of the official benchmarks", "An official benchmark")
    steps = ["prepare new", "generate new --arms teacher,student", "score new", "collect new"]
    then = "from pipeline.cli import main\n" + "".join(
        f"main({['benchmark', *step.split()]}, standalone_mode=False)\n" for step in steps
    )
    run(project, "check", then=then)
    rows = pd.read_csv(project.folder / "benchmarks" / "results" / "table.csv")
    assert list(rows["arm"]) == ["teacher", "student"] and list(rows["retention"]) == [1, 1]
    assert set(rows["value"]) == {project.read_params()["teacher"]["height"]}


def test_an_added_parameter_is_read_and_refused_out_of_its_range(grow):
    project = grow("A parameter")
    asked = "from pipeline import params; print(params.load().teacher.new)"
    assert project.succeed("python", "-c", asked) == "3\n"
    project.change("teacher.new", 1)
    result = project.run("python", "-m", "stages.compute_partition")
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == "Error: compute_partition: teacher.new must be at least 2, got 1"


def test_an_added_sign_of_full_memory_is_recognised(grow):
    project = grow("A sign of full memory")
    asked = "from pipeline.out_of_memory import out_of_memory; print(out_of_memory(RuntimeError('no memory left')))"
    assert project.succeed("python", "-c", asked) == "True\n"


def test_an_added_measurement_writes_its_figures_and_its_page(grow):
    project = grow("A measurement of the project itself")
    project.succeed("python", "-m", "measurements.new")
    docs = project.folder / "docs" / "measured"
    stages = json.loads((docs / "new.json").read_text())["stages"]
    assert (docs / "new.md").read_text() == f"There are {stages} stages.\n"
