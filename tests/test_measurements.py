"""The measurements run anywhere on little models, and write their tables."""

import json

import pytest
import torch
from click.testing import CliRunner

from measurements import benchmarks, errors, gpu, handoff, sixteen_bits, sixteen_bits_arms, sixteen_bits_page
from pipeline import adapters, params
from pipeline.adapters import switching
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


class OneLayer(torch.nn.Module):
    """y = W x with W = 1."""

    def __init__(self, dtype):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4, bias=False, dtype=dtype).requires_grad_(False)
        self.layer.weight.fill_(1)
        self.dtype = dtype


def change(size):
    """An adapter whose B A is `size` in the first row and 0 elsewhere."""
    B = torch.zeros(4, 1)
    B[0] = size
    return {"slow": {"layer.lora_A.weight": torch.ones(1, 4), "layer.lora_B.weight": B}}


@pytest.mark.parametrize(
    ("size", "kept", "error"),
    [
        (2**-9, 0, 1.0),  # below half a step of bfloat16 at 1, which is 2^-7: W + B A is W again
        (2**-7, 1, 0.0),
        (3 * 2**-8, 1, 1 / 3),  # half-way between two steps: the even one is another half step away
    ],
)
def test_what_rounding_keeps_of_a_change_is_analytic(size, kept, error):
    found = sixteen_bits.rounding(OneLayer(torch.float32), change(size))
    assert found == pytest.approx({"size": size / 2, "kept": kept, "sum_error": error, "factor_error": 0})


def test_full_weights_rounded_to_bfloat16_lose_what_the_other_ways_keep():
    x, states = torch.tensor([[1.0, -1.0, 0.0, 0.0]]), change(2**-9)
    states["slow"]["layer.lora_A.weight"] = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    ways = {"rounded": sixteen_bits_arms.rounded_sums, "factors": sixteen_bits_arms.rounded_factors}
    for dtype in (torch.float32, torch.bfloat16):
        model = OneLayer(dtype)
        for name, acting in (ways | {"products": sixteen_bits_arms.float32_products}).items():
            if dtype == torch.float32 or name == "products":
                with acting(model, states) as select:
                    select("slow")
                    y = model.layer(x.to(dtype))[0, 0]
                    select(None)
                    assert not model.layer(x.to(dtype)).any()
                assert y == (0 if name == "rounded" else 2**-8), (dtype, name)
                assert not model.layer(x.to(dtype)).any() and (model.layer.weight == 1).all()


def test_a_weaker_adapter_is_a_smaller_change():
    (state,) = sixteen_bits.weakened(change(2.0), 0.25).values()
    assert torch.equal(adapters.delta(state, "layer"), adapters.delta(change(0.5)["slow"], "layer"))


def test_adapters_in_16_bits_are_measured_on_any_pair(tmp_path):
    make_tiny_flux(tmp_path / "teacher")
    write_bundle(tmp_path / "bundle")
    folders = ["--teacher", tmp_path / "teacher", "--bundle", tmp_path / "bundle", "--docs", tmp_path]
    command = [str(option) for option in (*folders, "--prompts", 3, "--rounds", 1)]
    result = CliRunner().invoke(sixteen_bits.main, command)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "sixteen_bits.json").read_text())
    rows = {(row["arm"], row["strength"]): row for row in found["rows"]}
    assert len(rows) == (len(sixteen_bits.ARMS) - 1) * len(sixteen_bits.STRENGTHS)
    assert rows["float32, beside the layers", 1]["psnr"] > 58, "fused or beside the layers is the same in float32"
    assert rows["float32, no adapter", 1]["psnr"] < rows[sixteen_bits.FUSED, 1]["psnr"] < 58
    assert rows["float32, no adapter", 1]["lost"] == pytest.approx(1)
    assert rows["float32, beside the layers", 1]["lost"] < 1e-3 < rows[sixteen_bits.FUSED, 1]["lost"] < 1
    kept = [change["kept"] for change in found["changes"]]
    assert kept == sorted(kept, reverse=True) and kept[0] > kept[-1]
    assert found["times"].keys() == {name for name, how in sixteen_bits.ARMS.items() if how.dtype == "bf16"}
    assert found["times"][sixteen_bits.FUSED]["ratio"] == [1, 1, 1]
    assert (tmp_path / "sixteen_bits.md").read_text() == sixteen_bits_page.page(found)


def test_the_page_of_16_bits_is_what_the_command_makes_of_its_figures():
    found = json.loads((handoff.DOCS / "sixteen_bits.json").read_text())
    assert (handoff.DOCS / "sixteen_bits.md").read_text() == sixteen_bits_page.page(found)


def test_the_two_transformers_have_the_same_weights(tmp_path):
    path = make_tiny_flux(tmp_path / "teacher")
    exact, short = (sixteen_bits.load(path, dtype).transformer for dtype in ("fp32", "bf16"))
    weights = dict(short.named_parameters())
    for name, weight in exact.named_parameters():
        assert weight.dtype == torch.float32 and weights[name].dtype == torch.bfloat16
        assert torch.equal(weight, weights[name].float())
    assert switching.fuses(exact) and not switching.fuses(short)
