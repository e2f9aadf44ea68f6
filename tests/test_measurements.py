"""The measurements run anywhere on little models, and write their tables."""

import json

import pytest
from click.testing import CliRunner

from measurements import benchmarks, errors, gpu, handoff
from pipeline import params
from tests.published import write_bundle
from tests.tiny import make_tiny_flux


@pytest.mark.slow  # times a model of normal width
def test_gpu_measures_a_small_model_and_adds_to_the_table(tmp_path):
    options = ["--model", "qwen-image", "--small", "--pixels", "32", "--repeats", "1", "--device", "cpu"]
    for _ in range(2):
        result = CliRunner().invoke(gpu.main, [*options, "--docs", str(tmp_path)])
        assert result.exit_code == 0, result.output
    ((machine, rows),) = json.loads((tmp_path / "gpu.json").read_text()).items()
    assert machine.startswith("CPU") and len(rows) == 1, "measuring again replaces the row"
    row = rows[0]
    assert row["nfe"] == 100 and row["training_peak_gib"] is None
    assert min(row[name] for name in ("teacher_s", "student_8_fused_s", "student_4_fused_s")) > 0
    table = (tmp_path / "gpu.md").read_text()
    assert f"## {machine}" in table and "qwen-image (*small*)" in table


def test_the_handoff_is_timed_with_a_bundle_or_without(tmp_path):
    make_tiny_flux(tmp_path / "teacher")
    write_bundle(tmp_path / "bundle")
    options = ["--teacher", tmp_path / "teacher", "--docs", tmp_path, "--rounds", 3, "--device", "cpu", "--batch", 2]
    rows, shipped = [], params.load(handoff.ROOT / "params.yaml").training
    for folder in ("bundle", "nowhere", "nowhere"):
        command = [str(option) for option in (*options, "--bundle", tmp_path / folder)]
        result = CliRunner().invoke(handoff.main, command)
        assert result.exit_code == 0, result.output
        ((machine, rows),) = json.loads((tmp_path / "handoff.json").read_text()).items()
    assert [(row["adapters"], row["rank"], row["steps"]) for row in rows] == [
        ("bundle", 2, 2),
        ("random", shipped.rank, 8),
    ]
    for row in rows:
        assert row["rounds"] == 3 and row["batch"] == 2 and row["base_ms"] > 0
        assert 0 < row["added"] and row["fused_low"] <= row["fused"] <= row["fused_high"]
    assert f"## {machine}" in (tmp_path / "handoff.md").read_text()


def test_ratios_are_taken_within_a_round():
    """A machine that becomes ten times slower in the middle changes no ratio."""
    now, durations = [0.0], {"base": 1.0, "fused": 1.02, "unfused": 1.1}

    def arm(name):
        def run():
            now[0] += durations[name] * (10 if now[0] > 20 else 1)

        return run

    times = handoff.interleave({name: arm(name) for name in durations}, rounds=12, clock=lambda: now[0])
    assert {name: len(seconds) for name, seconds in times.items()} == dict.fromkeys(durations, 12)
    low, middle, high = handoff.quartiles(times["fused"], times["base"])
    assert middle == pytest.approx(1.02) and low <= middle <= high


def test_the_errors_of_a_student_are_told_by_step_and_by_phase(project, tmp_path):
    result = CliRunner().invoke(
        errors.main, ["--prompts", "3", "--project", str(project.folder), "--docs", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "errors.json").read_text())
    first, *_, last = found["steps"]
    assert [row["phase"] for row in found["steps"]] == ["slow", "fast", "fast", "fast"]
    assert first["path_mse"] == pytest.approx(first["step_mse"]) and last["sigma"] == 0
    assert all(row["step_mse"] > 0 for row in found["steps"])
    student, _, _, perturbed, *bases = found["runs"]
    assert perturbed["psnr"] > student["psnr"]
    assert [row["run"] for row in bases] == [f"base, {n} guided steps" for n in (4, *errors.BASE_STEPS)]
    assert bases[-1]["psnr"] > bases[0]["psnr"]
    assert (tmp_path / "errors.md").read_text() == errors.page(found)


def test_the_page_of_errors_is_what_the_command_makes_of_its_figures():
    found = json.loads((handoff.DOCS / "errors.json").read_text())
    assert (handoff.DOCS / "errors.md").read_text() == errors.page(found)


def test_the_cost_of_the_benchmarks_is_what_the_command_makes_of_the_cost():
    found = json.loads((handoff.DOCS / "cost.json").read_text())
    assert (handoff.DOCS / "benchmarks.md").read_text() == benchmarks.page(found)
    assert " 24,792 " in benchmarks.page(found), "images of an arm in all benchmarks in English"
