"""The table of scorers, and what they load, without the packages of the extra `benchmarks`."""

import hashlib
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from pipeline.benchmarking.scorers import Weight, loading, table
from pipeline.benchmarking.scorers.exact import exact

WEIGHT = Weight(name="tiny", hub="owner/name@main", file="tiny.pt", licence="none")


def test_every_scorer_stands_in_the_table_by_its_name():
    for name, entry in table.SCORERS.items():
        assert entry.name == name and entry.version >= 1 and entry.batch >= 1
        assert not entry.weights or "torch" in entry.packages
    assert table.find("clip") is table.SCORERS["clip"]
    with pytest.raises(ValueError, match="scorer must be one of brightness, clip, .* got 'clop'; did you mean clip?"):
        table.find("clop")


def test_scorers_of_one_name_of_weights_load_the_same_weights():
    weights = [weight for entry in table.SCORERS.values() for weight in entry.weights]
    assert len({weight.name for weight in weights}) == len(set(weights))


def test_the_table_needs_none_of_the_extra_packages():
    code = "import sys; from pipeline.benchmarking.scorers import table; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"open_clip", "torch_fidelity", "torchvision", "qwen_vl_utils"} & set(done.stdout.split())


def test_a_file_is_found_by_its_name_and_its_bytes(tmp_path):
    path = tmp_path / "tiny.pt"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert loading.file(WEIGHT, {"tiny": path}) == path
    assert loading.file(replace(WEIGHT, sha256=digest), {"tiny": path, "other": tmp_path}) == path


@pytest.mark.parametrize(
    "places, message",
    [
        ({}, "the weights tiny must be tiny.pt of owner/name@main, got no file$"),
        ({"tiny": "."}, "the weights tiny must be tiny.pt of owner/name@main, got the folder .*$"),
        ({"tiny": "tinny.pt"}, "got .*tinny.pt, which is no file; did you mean .*tiny.pt[?]$"),
        ({"tiny": "tiny.pt"}, "tiny.pt of owner/name@main with the sha256 0000, got [0-9a-f]{64} in .*tiny.pt$"),
    ],
)
def test_another_file_is_refused(tmp_path, places, message):
    (tmp_path / "tiny.pt").write_bytes(b"other")
    with pytest.raises(ValueError, match=message):
        loading.file(replace(WEIGHT, sha256="0000"), {name: tmp_path / place for name, place in places.items()})


def test_weights_that_are_one_address_are_named_by_it():
    weight = Weight(name="tiny", hub="https://example.org/tiny.pt", licence="none")
    with pytest.raises(ValueError, match="the weights tiny must be https://example.org/tiny.pt, got no file"):
        loading.file(weight, {})


def test_a_missing_package_is_one_sentence():
    with pytest.raises(ValueError, match=r"absent_package must load: pip install .* got No module named") as error:
        loading.package("absent_package")
    assert "\n" not in str(error.value)


def test_a_package_that_does_not_load_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("raise RuntimeError('operator nms\\n does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="broken_package must load: .* got operator nms does not exist$"):
        loading.package("broken_package")


def test_a_model_is_filled_with_all_of_its_tensors_in_its_own_dtype():
    model, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    loading.fill(model, {name: value.half() for name, value in other.state_dict().items()}, WEIGHT)
    torch.testing.assert_close(model.weight, other.weight.half().float())


@pytest.mark.parametrize(
    "state, message",
    [
        (
            {"bias": torch.zeros(3)},
            "must hold the 2 tensors of their model, got 1: 1 are .* the first is weight$",
        ),
        ({"bias": torch.zeros(3), "weight": torch.zeros(3, 1)}, "got 2: 1 are .* shape, the first is weight"),
        ({"bias": torch.zeros(3), "weight": torch.zeros(3, 2), "a": torch.zeros(1)}, "got 3: 1 are .* the first is a$"),
    ],
)
def test_weights_of_another_model_are_refused(state, message):
    with pytest.raises(ValueError, match=message):
        loading.fill(torch.nn.Linear(2, 3), state, WEIGHT)


def test_networks_run_without_gradients_and_without_tf32():
    before = torch.backends.cudnn.allow_tf32
    with exact():
        assert not torch.is_grad_enabled() and not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.deterministic
    assert torch.is_grad_enabled() and torch.backends.cudnn.allow_tf32 == before
