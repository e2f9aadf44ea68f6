"""A bundle is rebuilt from its LoRA files alone: their headers carry the contract."""

import json
import re
import shutil
from dataclasses import replace

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline import adapters
from pipeline.artifacts import save_safetensors
from pipeline.bundle import carried, experts, importing
from pipeline.bundle.manifest import Bundle
from pipeline.bundle.parts import Retention
from pipeline.cli import main
from tests.pairs import make_pair, write_adapter
from tests.recorded import ROOT, small_params

RETENTION = Retention(value=0.9, low=0.8, high=1.0, score="scenes", prompts=9, student_forwards=4, teacher_forwards=16)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def params(pair):
    """Of the pair's teacher, with another size, guidance and number of steps than the pair's."""
    params = small_params(pair.recorded.teacher)
    other = {"height": 96, "width": 32, "steps": 5, "true_cfg_scale": 7.0, "negative_prompt": "dull", "dtype": "bf16"}
    student = replace(params.student, true_cfg_scale=2.0, solver="ab2")
    return replace(params, teacher=replace(params.teacher, **other), student=student)


def alone(bundle, folder):
    """The bundle's adapters without the rest of its folder."""
    folder.mkdir(exist_ok=True)
    return [shutil.copy(file, folder / f"copy-{file.name}") for file in bundle.files.values()]


def changed(file, **changes):
    """The file with other values in its contract."""
    with safe_open(file, framework="pt") as opened:
        texts = opened.metadata()
    texts["glance"] = json.dumps(json.loads(texts["glance"]) | changes)
    save_safetensors(file, load_file(file), texts)
    return file


@pytest.mark.parametrize("path", ["consistent", "official"])
def test_a_pair_is_rebuilt_as_it_was_from_files_in_any_order(pair, params, tmp_path, path):
    bundle = pair.written(tmp_path / "bundle", path=path, license="mit", retention=RETENTION)
    found = carried.by(alone(bundle, tmp_path / "files")[::-1])
    assert list(found.files) == ["slow", "fast"] and found.contract.to_json() == bundle.to_json()
    made = importing.rebuilt(found, params, tmp_path / "made")
    assert made.to_json() == bundle.to_json() and made.retention == RETENTION
    for phase, file in bundle.files.items():
        assert made.files[phase].read_bytes() == file.read_bytes()


def test_one_and_three_adapters_are_rebuilt_too(pair, params, tmp_path):
    for names in ("one one one one", "a a b c"):
        acting = names.split()
        folders = {name: tmp_path / names / name for name in acting}
        for i, folder in enumerate(folders.values()):
            write_adapter(pair.recorded.backbone(), folder, seed=i)
        path = experts.regroup(pair.recorded.partition, acting)
        bundle = pair.written(tmp_path / names / "bundle", trained=folders, partition=path)
        made = importing.rebuilt(carried.by(list(bundle.files.values())), params, tmp_path / names / "made")
        assert made.to_json() == bundle.to_json()
        assert all(made.files[name].read_bytes() == file.read_bytes() for name, file in bundle.files.items())


def test_another_strength_scales_the_change_and_drops_the_retention(pair, params, tmp_path):
    bundle = pair.written(tmp_path / "bundle", retention=RETENTION)
    made = importing.rebuilt(carried.by(list(bundle.files.values())), params, tmp_path / "made", strength=0.5)
    assert made.retention is None
    for phase, state in bundle.states().items():
        for module in adapters.adapted(state):
            assert adapters.delta(made.states()[phase], module).allclose(adapters.delta(state, module) / 2)


def test_files_without_a_contract_carry_none(pair, tmp_path):
    slow, fast = alone(pair.bundle, tmp_path)
    assert carried.carry([slow, fast])
    save_file(load_file(fast), fast, {"format": "pt"})
    assert carried.by([slow, fast]) is None and carried.by([fast]) is None
    assert not carried.carry([slow, fast])


def test_contracts_that_differ_are_refused(pair, tmp_path):
    slow, fast = alone(pair.bundle, tmp_path)
    changed(fast, height=96)
    message = f"{fast} must carry the contract of {slow}, got height 96 beside 64"
    with pytest.raises(ValueError, match=re.escape(message)):
        carried.by([slow, fast])
    changed(fast, height=64, license=100 * "x")
    with pytest.raises(ValueError, match=r"got license x{60}\.\.\. beside unknown"):
        carried.by([slow, fast])


def test_a_phase_that_is_there_twice_or_not_at_all_is_refused(pair, tmp_path):
    slow, fast = alone(pair.bundle, tmp_path)
    with pytest.raises(ValueError, match="must be adapters of two phases, got slow twice"):
        carried.by([slow, slow])
    with pytest.raises(ValueError, match="the files must be the phases slow, fast of their contract, got fast"):
        carried.by([fast])


def test_a_contract_that_the_schema_refuses_is_refused(pair, tmp_path):
    slow, fast = alone(pair.bundle, tmp_path)
    changed(slow, rank=0)
    with pytest.raises(ValueError, match="slow.safetensors: glance in the header: rank must be at least 1, got 0"):
        carried.by([slow, fast])


def test_a_contract_for_another_base_is_refused(pair, params, tmp_path):
    files = [changed(file, base_digest="sha256:" + 64 * "0") for file in alone(pair.bundle, tmp_path)]
    with pytest.raises(ValueError, match="carry a contract for another model than .*: sha256:0*, not .* with --levels"):
        importing.rebuilt(carried.by(files), params, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_base_with_another_scheduler_is_refused(pair, params, tmp_path):
    """The digest is of the transformer alone."""
    teacher = shutil.copytree(pair.recorded.teacher, tmp_path / "teacher")
    file = teacher / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_shift": 2.0, "base_shift": 2.0}))
    params = replace(params, teacher=replace(params.teacher, path=str(teacher)))
    found = carried.by(alone(pair.bundle, tmp_path / "files"))
    with pytest.raises(ValueError, match="with the noise levels 1.0000, .*, 0.0000, and the scheduler of .* gives 1.0"):
        importing.rebuilt(found, params, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_strength_that_is_no_number_and_a_place_that_is_taken_are_refused(pair, params, tmp_path):
    found = carried.by(list(pair.bundle.files.values()))
    with pytest.raises(ValueError, match="--strength must be a finite number, got nan"):
        importing.rebuilt(found, params, tmp_path / "made", strength=float("nan"))
    (tmp_path / "made").mkdir()
    with pytest.raises(ValueError, match="--out must not be there yet, got .*made"):
        importing.rebuilt(found, params, tmp_path / "made")


@pytest.fixture
def project(pair, tmp_path, monkeypatch):
    """A working directory with params.yaml of the pair's teacher, and the pair's files without their bundle."""
    content = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    content["teacher"]["path"] = str(pair.recorded.teacher)
    YAML().dump(content, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    for file in pair.bundle.files.values():
        shutil.copy(file, tmp_path)
    return tmp_path


def glance(*arguments, code=0):
    done = CliRunner().invoke(main, ["import", *arguments])
    assert done.exit_code == code, done.output
    return done.output


def test_the_command_takes_steps_levels_and_names_from_the_files(pair, project):
    said = glance("fast.safetensors", "slow.safetensors", "--out", "made")
    assert said.splitlines() == [
        "steps, levels and names are those of the contract that the 2 files carry",
        "made: 4 steps, rank 3",
    ]
    assert Bundle.load("made").to_json() == pair.bundle.to_json()


@pytest.mark.parametrize(
    ("options", "given"),
    [
        (("--rule", "official"), "--rule"),
        (("--levels", "1.0,0.5", "--steps", "1,1"), "--steps, --levels"),
        (("--slow-steps", "5", "--names", "a,b"), "--slow-steps, --names"),
        (("--path", "consistent"), "--path"),
    ],
)
def test_an_option_of_the_path_takes_the_place_of_the_contract(pair, project, options, given):
    said = glance("slow.safetensors", "fast.safetensors", *options, "--out", "made")
    assert said.splitlines()[0] == f"the contract that the files carry is not used, because of {given}"
    assert Bundle.load("made").u != pair.bundle.u


def test_files_without_a_contract_are_imported_as_before(project):
    for name in ("slow.safetensors", "fast.safetensors"):
        save_file(load_file(name), name)
    assert glance("slow.safetensors", "fast.safetensors", "--out", "made") == "made: 10 steps, rank 3\n"


def test_the_command_refuses_contracts_that_differ(project):
    changed(project / "fast.safetensors", width=96)
    said = glance("slow.safetensors", "fast.safetensors", "--out", "made", code=1)
    assert said == "Error: fast.safetensors must carry the contract of slow.safetensors, got width 96 beside 64\n"
    assert not (project / "made").exists()
