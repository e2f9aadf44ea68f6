"""Bundles of any number of adapters: their path, what stock diffusers makes of them, their import and their format."""

import json
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import FluxPipeline, FluxTransformer2DModel
from PIL import Image
from ruamel.yaml import YAML

from pipeline import backbones, cli
from pipeline.bundle import experts
from pipeline.bundle.formats import export
from pipeline.bundle.generating import generate
from pipeline.bundle.manifest import Bundle
from pipeline.flow.schedule import Schedule, base_levels
from pipeline.partition import Partition
from tests.pairs import PROMPTS, SEEDS, difference, make_pair, pixels, stock, stock_images, write_adapter
from tests.recorded import ROOT
from tests.test_importing import MODULE, diffusers_keys, write

SCHEDULE = Schedule(mu=0.5)
SPLITS = {1: "aaaa", 3: "abbc", 4: "abcd"}  # the adapter of each of the 4 steps, by the number of adapters


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def adapters(pair, tmp_path_factory):
    """Folders of four adapters."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate("abcd"):
        write_adapter(pair.recorded.backbone(), folder / name, seed=seed)
    return {name: folder / name for name in "abcd"}


@pytest.fixture(scope="module")
def bundles(pair, adapters, tmp_path_factory):
    """A bundle for each number of adapters."""
    folder = tmp_path_factory.mktemp("bundles")
    return {
        count: pair.written(
            folder / str(count), trained=adapters, partition=experts.regroup(pair.recorded.partition, acting)
        )
        for count, acting in SPLITS.items()
    }


@pytest.mark.parametrize("acting", [*SPLITS.values(), ("slow", "slow", "fast", "fast")])
def test_regrouped_steps_are_the_same_steps(pair, acting):
    path = pair.recorded.partition
    found = experts.regroup(path, acting)
    assert (found.steps, found.u, found.sigmas) == (path.steps, path.u, path.sigmas)
    assert [phase.name for phase in found.phases] == list(dict.fromkeys(acting))
    assert [phase.name for phase in found.phases for _ in phase.steps] == [*acting]
    assert sum((phase.pairs for phase in found.phases), ()) == path.slow.pairs + path.fast.pairs
    assert sum((phase.snr for phase in found.phases), ()) == path.slow.snr + path.fast.snr
    assert sum((phase.timesteps for phase in found.phases), ()) == path.slow.timesteps + path.fast.timesteps


def test_a_pair_regrouped_by_its_own_names_is_the_pair(pair):
    path = pair.recorded.partition
    assert experts.regroup(path, ("slow", "slow", "fast", "fast")) == path
    assert Partition.from_json(json.loads(json.dumps(path.to_json()))) == path


@pytest.mark.parametrize(
    ("acting", "message"),
    [
        ("abc", "a path of 4 steps needs as many adapters, got 3"),
        ("abba", "the steps of an adapter must be consecutive, got a, b, b, a"),
    ],
)
def test_other_groups_are_refused(pair, acting, message):
    with pytest.raises(ValueError, match=message):
        experts.regroup(pair.recorded.partition, acting)


def test_levels_on_the_teachers_grid_have_its_steps_and_others_the_nearest():
    for total in (8, 25, 50, 997):
        steps = sorted({0, total // 7, total // 3, total - 2, total - 1})
        path = experts.at_levels(base_levels(total)[steps].tolist(), "abcde"[: len(steps)], total, SCHEDULE)
        assert path.steps == (*steps, total)
    path = experts.at_levels([1.0, 0.93, 0.89, 0.001], "aabc", 10, SCHEDULE)
    assert path.steps == (0, 1, 1, 9, 10)
    assert path.u == (1.0, 0.93, 0.89, 0.001)
    assert path.sigmas == tuple(SCHEDULE.sigmas(path.u).tolist())


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([1.0, 0.5], "--levels must hold a level for each of the 3 steps, got 2"),
        ([0.9, 0.5, 0.1], "--levels must decrease from 1 to a last level above 0, got 0.9, 0.5, 0.1"),
        ([1.0, 0.5, 0.5], "--levels must decrease from 1"),
        ([1.0, 0.5, 0.0], "--levels must decrease from 1"),
        ([1.0, 0.5, float("nan")], "--levels must decrease from 1"),
    ],
)
def test_levels_that_are_no_path_are_refused(levels, message):
    with pytest.raises(ValueError, match=message):
        experts.at_levels(levels, "abc", 50, SCHEDULE)


@pytest.mark.parametrize("steps", [1, 3, 8, 50])
def test_the_rule_uniform_spreads_the_steps_evenly(steps):
    path = experts.by_rule("uniform", "a" * steps, 50, SCHEDULE)
    assert path.rule == "uniform" and len(path.steps) == steps + 1
    assert np.abs(np.diff(path.steps) - 50 / steps).max() < 1
    assert path.u == tuple(base_levels(50)[list(path.steps[:-1])].tolist())


def test_other_rules_and_too_many_steps_are_refused():
    message = "--rule must be one of uniform for 3 files without --levels, got 'official'"
    with pytest.raises(ValueError, match=message):
        experts.by_rule("official", "abc", 50, SCHEDULE)
    with pytest.raises(ValueError, match="--steps must add up to at most the teacher's 8 steps, got 9"):
        experts.by_rule("uniform", "aaabbbccc", 8, SCHEDULE)


@pytest.mark.parametrize("count", SPLITS)
def test_the_manifest_lists_the_phases_and_handoffs(bundles, count):
    bundle = bundles[count]
    manifest = json.loads((bundle.folder / "glance.json").read_text())
    phases = manifest["phases"]
    assert [(phase["name"], phase["file"]) for phase in phases] == [
        (name, f"{name}.safetensors") for name in dict.fromkeys(SPLITS[count])
    ]
    assert manifest["handoffs"] == [
        {"step": phase["steps"][0], "u": phase["u"][0], "sigma": phase["sigmas"][0]} for phase in phases[1:]
    ]
    assert len(manifest["handoffs"]) == count - 1
    assert Bundle.load(bundle.folder) == bundle and list(bundle.states()) == list(dict.fromkeys(SPLITS[count]))


@pytest.mark.parametrize("count", SPLITS)
def test_stock_diffusers_makes_the_images_of_generate(pair, bundles, count):
    bundle = bundles[count]
    backbone = pair.recorded.backbone(backbones.PARTS)
    assert bundle.plan(backbone).adapters == tuple(SPLITS[count])
    images = generate(backbone, bundle, PROMPTS, SEEDS)
    assert difference(images, pixels(stock_images(stock(pair.recorded, bundle.folder), bundle))) <= 1
    assert all(
        difference(images, generate(backbone, other, PROMPTS, SEEDS)) > 1
        for other in bundles.values()
        if other is not bundle
    )


@pytest.mark.parametrize("count", SPLITS)
def test_the_models_card_runs(pair, bundles, count, monkeypatch):
    bundle = bundles[count]
    text = (bundle.folder / "README.md").read_text()
    assert ("# One LoRA adapter: 4 steps" if count == 1 else f"# {count} LoRA adapters: 4 steps") in text
    for phase in bundle.phases:
        assert f"\n| `{phase.name}` | {len(phase.steps)} | {phase.sigmas[0]:.4f} |\n" in text
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    monkeypatch.chdir(bundle.folder)
    scope = {}
    exec(code, scope)
    images = generate(pair.recorded.backbone(backbones.PARTS), bundle, ["a red star"], [0])
    assert difference(images[0], np.asarray(scope["image"])) <= 1


def test_the_lines_of_the_readme_take_any_number_of_adapters(pair, bundles, tmp_path, monkeypatch):
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "teacher").symlink_to(pair.recorded.teacher)
    (tmp_path / "my-pair").symlink_to(bundles[3].folder)
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    scope = {}
    exec(code, scope)
    images = generate(pair.recorded.backbone(backbones.PARTS), bundles[3], ["a red star"], [7])
    assert difference(images[0], np.asarray(scope["image"])) <= 1


def test_the_fused_format_has_a_transformer_per_phase(pair, bundles, tmp_path):
    bundle = bundles[3]
    export("fused", bundle.folder, tmp_path / "fused")
    load = FluxTransformer2DModel.from_pretrained
    phases = {name: load(tmp_path / "fused" / name / "transformer") for name in "abc"}
    assert sorted(path.name for path in (tmp_path / "fused").iterdir()) == ["a", "b", "c", "glance.json"]
    pipe = FluxPipeline.from_pretrained(pair.recorded.teacher)
    pipe.set_progress_bar_config(disable=True)
    images = stock_images(pipe, bundle, lambda pipe, phase: setattr(pipe, "transformer", phases[phase]))
    ours = generate(pair.recorded.backbone(backbones.PARTS), bundle, PROMPTS, SEEDS)
    assert difference(ours, pixels(images)) <= 1


def test_the_official_path_is_for_two_phases(pair, adapters, tmp_path):
    path = experts.regroup(pair.recorded.partition, SPLITS[3])
    with pytest.raises(ValueError, match="the path official needs two phases, slow and fast, got 3"):
        pair.written(tmp_path, trained=adapters, partition=path, path="official")


def test_a_name_that_is_none_for_a_file_is_refused(pair, adapters, tmp_path):
    path = experts.regroup(pair.recorded.partition, ["../a"] * 4)
    with pytest.raises(ValueError, match="the name of a phase must be of a-z, 0-9 and _, got '../a'"):
        pair.written(tmp_path / "bundle", trained={"../a": adapters["a"]}, partition=path)


@pytest.fixture
def place(pair, tmp_path, monkeypatch):
    """A folder with params.yaml of the tiny teacher and four LoRA files, as the working directory."""
    content = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    content["teacher"]["path"] = str(pair.recorded.teacher)
    YAML().dump(content, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ABCD"):
        write(tmp_path / f"{name}.safetensors", diffusers_keys(MODULE["flux"]), rank=2 + seed, seed=seed)
    return tmp_path


def glance(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def imported(files, *options):
    """The bundle that `glance import` makes of some of the files."""
    done = glance("import", *(f"{name}.safetensors" for name in files), "--out", "made", *options)
    assert done.exit_code == 0, done.output
    return Bundle.load("made")


def refused(files, *options):
    """The one sentence of an import that must fail."""
    done = glance("import", *(f"{name}.safetensors" for name in files), "--out", "made", *options)
    assert done.exit_code == 1 and done.stderr.count("Error: ") == 1, done.output
    return done.stderr.strip()


def test_four_files_become_a_bundle_that_generates(place, pair):
    bundle = imported("ABCD", "--steps", "2,2,2,2", "--rule", "uniform")
    assert [phase.name for phase in bundle.phases] == [f"expert_{i}" for i in range(1, 5)]
    assert [len(phase.steps) for phase in bundle.phases] == [2] * 4 and bundle.rank == 5
    assert bundle.steps == (0, 6, 12, 19, 25, 31, 38, 44)
    done = glance("generate", "a red star", "--bundle", "made", "--seed", 3, "--out", "image.png")
    assert done.exit_code == 0, done.output
    expected = generate(backbones.load(pair.recorded.teacher, "cpu"), bundle, ["a red star"], [3])[0]
    np.testing.assert_array_equal(np.asarray(Image.open("image.png")), expected)


def test_a_pair_by_steps_is_the_pair_by_slow_and_fast_steps(place):
    options = ("--rule", "uniform", "--slow-steps", 1, "--fast-steps", 3)
    one = imported("AB", *options)
    done = glance("import", "A.safetensors", "B.safetensors", "--out", "other", "--rule", "uniform", "--steps", "1,3")
    assert done.exit_code == 0, done.output
    assert Bundle.load("other").phases == one.phases and list(one.files) == ["slow", "fast"]


@pytest.mark.parametrize("files", ["A", "AB", "ABC"])
def test_levels_can_be_given_for_any_number_of_files(place, files):
    levels = [1.0, 0.9, 0.55, 0.123][: len(files) + 1]
    counts = ",".join(["2"] + ["1"] * (len(files) - 1))
    names = [f"at_{i}" for i in range(len(files))]
    given = ",".join(map(str, levels))
    bundle = imported(files, "--steps", counts, "--levels", given, "--names", ",".join(names))
    assert bundle.u == tuple(levels) and list(bundle.files) == names
    assert bundle.steps == (0, 5, 22, 44)[: len(levels)]
    plan = bundle.plan(backbones.load(bundle.base_model, "cpu", ()))
    torch.testing.assert_close(plan.sigmas[:-1].tolist(), [s for p in bundle.phases for s in p.sigmas[:-1]])


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ("ABC", (), "--steps must hold a whole number of at least 1 for each of the 3 files, got None"),
        ("ABC", ("--steps", "2,2"), "for each of the 3 files, got 2,2"),
        ("AB", ("--steps", "2,0"), "for each of the 2 files, got 2,0"),
        ("A", ("--steps", "x"), "for each of the 1 files, got x"),
        (
            "ABC",
            ("--steps", "2,2,2"),
            "--rule must be one of uniform for 3 files without --levels, got 'official'",
        ),
        ("AB", ("--names", "a,a"), "--names must hold a different name for each of the 2 files, got a,a"),
        ("AB", ("--names", "a"), "--names must hold a different name for each of the 2 files, got a"),
        ("AB", ("--names", "a,../b"), "the name of a phase must be of a-z, 0-9 and _, got '../b'"),
        ("A", ("--steps", "2", "--levels", "1,b"), "--levels must be numbers with commas between them, got 1,b"),
        ("A", ("--steps", "2", "--levels", "1,0.5,0.1"), "--levels must hold a level for each of the 2 steps, got 3"),
        ("A", ("--steps", "99", "--rule", "uniform"), "--steps must add up to at most the teacher's 50 steps, got 99"),
        (
            "A",
            ("--steps", "2", "--rule", "uniform", "--path", "official"),
            "the path official needs two phases",
        ),
    ],
)
def test_an_import_that_does_not_fit_is_one_sentence(place, files, options, message):
    assert message in refused(files, *options)
    assert not (place / "made").exists()
