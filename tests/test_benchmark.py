"""The GPU benchmark runs anywhere on a few layers, and writes its table."""

import json

from click.testing import CliRunner

from benchmarks import gpu


def test_the_benchmark_measures_a_small_model_and_adds_to_the_table(tmp_path):
    options = ["--model", "qwen-image", "--small", "--pixels", "32", "--repeats", "1", "--device", "cpu"]
    for _ in range(2):
        result = CliRunner().invoke(gpu.main, [*options, "--docs", str(tmp_path)])
        assert result.exit_code == 0, result.output
    ((machine, rows),) = json.loads((tmp_path / "gpu.json").read_text()).items()
    assert machine.startswith("CPU") and len(rows) == 1, "measuring again replaces the row"
    row = rows[0]
    assert row["nfe"] == 100 and row["training_peak_gib"] is None
    assert row["teacher_s"] > row["student_8_fused_s"] > row["student_4_fused_s"] > 0
    table = (tmp_path / "gpu.md").read_text()
    assert f"## {machine}" in table and "qwen-image (*small*)" in table
