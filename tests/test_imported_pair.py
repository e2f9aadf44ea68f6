"""A pair that was trained elsewhere, from its two files to `models:/name@champion`, by the commands of a person."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from ruamel.yaml import YAML

from pipeline import artifacts, cli
from pipeline.bundle import generating
from pipeline.bundle.manifest import bundle_digest
from pipeline.evaluation import inputs
from pipeline.evaluation.samples import Shard
from pipeline.partition import PHASES
from pipeline.registry import connection
from pipeline.registry.registering import UNKNOWN
from pipeline.scenes import checker
from tests.evaluation_case import make_artifacts, small_params
from tests.published import client
from tests.test_importing import MODULE, diffusers_keys, write
from tests.tiny import make_tiny_flux

NAME = "glance-scenes"
OUTPUTS = {"metrics.json", "latency.json", "arms.csv", "quality_over_nfe.csv", "prompts.csv", "grid.png", "report.html"}
IMPORT = ("import", "slow.safetensors", "fast.safetensors", "--rule", "uniform", "--slow-steps", 2, "--fast-steps", 2)


def glance(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def done(*arguments):
    """What a command that must succeed prints."""
    result = glance(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments):
    """What a command that must fail says: one sentence, no traceback."""
    result = glance(*arguments)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    assert result.stderr.count("Error: ") == 1 and result.stderr.splitlines()[-1].startswith("Error: ")
    return result.stderr.splitlines()[-1].removeprefix("Error: ")


def write_params(**evaluation):
    settings = small_params(**{"prompts": 4, "diversity_prompts": 1, "grid_prompts": 2} | evaluation)
    plain = {name: {k: list(v) if isinstance(v, tuple) else v for k, v in section.items()}
             for name, section in asdict(settings).items()}  # fmt: skip
    YAML().dump(plain, Path("params.yaml"))
    return settings


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, database):
    """A folder with a tiny teacher, params.yaml, two LoRA files and a bundle `theirs` of them; no stage ever ran."""
    folder = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DVC_ROOT", str(folder))
        for name in (*connection.ENVIRONMENT, "MLFLOW_TRACKING_URI", "DVC_EXP_NAME"):
            patch.setenv(name, "")  # so that what connect sets is taken back
            patch.delenv(name)
        (folder / ".glance").mkdir()
        shutil.copy(database, folder / ".glance" / "mlflow.db")
        settings = write_params()
        make_tiny_flux(settings.teacher.path)
        for seed, phase in enumerate(PHASES):
            write(Path(f"{phase}.safetensors"), diffusers_keys(MODULE["flux"]), seed=seed)
        done(*IMPORT, "--path", "official", "--out", "theirs")
        yield settings


@pytest.fixture(scope="module")
def evaluated(workplace):
    """`glance evaluate theirs` with a checker that passes everything: images of random weights show no scene."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checker, "passes", lambda images, captions: np.ones(len(images), dtype=bool))
        printed = done("evaluate", "theirs")
    assert printed == "evaluation-theirs/report.html\n"
    return Path("evaluation-theirs")


def test_the_evaluation_is_whole_and_of_this_pair(evaluated):
    assert {path.name for path in evaluated.iterdir()} == OUTPUTS
    metrics = artifacts.read_json(evaluated / "metrics.json")
    assert metrics["bundle_digest"] == bundle_digest("theirs")
    assert not {"single", "official"} & metrics["arms"].keys(), "there are no controls"
    assert metrics["arms"]["student"]["nfe"] == 4 and metrics["arms"]["student"]["retention"] == 1
    page = (evaluated / "report.html").read_text()
    assert "the pair was trained elsewhere" in page and "no adapter was trained on" not in page
    assert "train_slow" not in page and "<dt>Path</dt><dd><code>official</code>" in page
    assert artifacts.read_json(evaluated / "latency.json")["arms"]["student"]["speedup_batch1"] > 0
    assert not artifacts.ROOT.joinpath("evaluation").exists() and not artifacts.PARTITION.exists()


def test_the_students_images_are_those_of_generate(workplace):
    source = inputs.of_bundle(workplace, Path("theirs"))
    one = inputs.read(workplace, source)
    (student,) = (arm for arm in one.arms if arm.name == "student")
    assert sum(student.plan.d_sigmas) < -1.01
    made = one.sampler.images(student, Shard(("a red star",), (3,)))
    one.sampler.weights.hold(())
    expected = generating.generate(one.sampler.backbone, one.bundle, ["a red star"], [3])
    np.testing.assert_array_equal(made, expected.numpy())


def test_an_imported_pair_is_registered_once_promoted_and_generated_from(evaluated):
    printed = done("register", "--bundle", "theirs", "--evaluation", evaluated)
    assert printed.startswith(f"{NAME} version 1 (run ")
    again = done("register", "--bundle", "theirs", "--evaluation", evaluated)
    assert again.startswith(f"{NAME} version 1 has these bytes already")

    store = connection.connect()
    version = store.versions.by_alias(NAME, "candidate")
    assert version.tags["retention"] == "1.0" and version.tags["bundle_digest"] == bundle_digest("theirs")
    run = client().get_run(version.run_id)
    assert run.data.tags["provenance"] == version.tags["provenance"] == UNKNOWN
    assert not {"git_revision", "dvc_experiment"} & (run.data.tags.keys() | version.tags.keys())
    assert run.info.run_name == "bundle theirs"
    assert run.data.params["bundle.path"] == "official" and run.data.params["teacher.steps"] == "10"
    assert not any(key.startswith(("train", "partition", "student")) for key in run.data.params)
    assert run.data.metrics["arms.student.retention"] == 1
    query = f"tags.`mlflow.parentRunId` = '{version.run_id}'"
    children = client().search_runs([run.info.experiment_id], query)  # no stage is made up
    assert [child.info.run_name for child in children] == ["register"]
    shown = {file.path for file in client().list_artifacts(version.run_id, "evaluation-theirs")}
    assert shown == {f"evaluation-theirs/{name}" for name in OUTPUTS}

    assert done("promote") == f"{NAME} version 1 is champion (retention 100.0 %)\n"
    for bundle, out in ((f"models:/{NAME}@champion", "champion.png"), ("theirs", "theirs.png")):
        done("generate", "a red star", "--bundle", bundle, "--out", out)
    np.testing.assert_array_equal(*(np.asarray(Image.open(file)) for file in ("champion.png", "theirs.png")))


def test_register_without_an_evaluation_of_this_bundle_is_one_sentence(evaluated, tmp_path):
    assert refused("register", "--bundle", "theirs", "--evaluation", "nowhere") == (
        "nowhere/metrics.json is missing: measure the bundle first, with `glance evaluate theirs --out nowhere`"
    )
    assert refused("register", "--bundle", "theirs") == (
        "artifacts/evaluation/metrics.json is missing: measure the bundle first, with `dvc repro`"
    )
    for key, what in (("bundle_digest", "bundle"), ("teacher_digest", "base model")):
        other = shutil.copytree(evaluated, tmp_path / key)
        metrics = json.loads((other / "metrics.json").read_text()) | {key: "sha256:other"}
        (other / "metrics.json").write_text(json.dumps(metrics))
        message = refused("register", "--bundle", "theirs", "--evaluation", other)
        assert f"must measure the {what} sha256:" in message and message.endswith("of theirs, got sha256:other")
    (evaluated / "latency.json").rename(tmp_path / "latency.json")
    message = refused("register", "--bundle", "theirs", "--evaluation", evaluated)
    (tmp_path / "latency.json").rename(evaluated / "latency.json")
    assert message == f"{evaluated}/latency.json is missing: evaluate the bundle anew"


def test_another_base_is_refused_by_generate_and_evaluate(workplace, tmp_path):
    other = shutil.copytree("theirs", tmp_path / "other")
    manifest = json.loads((other / "glance.json").read_text()) | {"base_digest": f"sha256:{64 * '0'}"}
    (other / "glance.json").write_text(json.dumps(manifest))
    assert "was made for another model than artifacts/teacher: sha256:000" in refused(
        "generate", "a star", "--bundle", other
    )
    out = tmp_path / "evaluation"
    message = refused("evaluate", other, "--out", out)
    assert "other must belong to the teacher in artifacts/teacher" in message and message.endswith(64 * "0")
    assert list(tmp_path.iterdir()) == [other], "nothing is left of a refused evaluation"


def test_evaluate_says_what_is_wrong(workplace, tmp_path):
    assert refused("evaluate", "theirs", "--out", tmp_path) == f"--out must not be there yet, got {tmp_path}"
    assert "nowhere is no bundle: glance.json is missing" in refused("evaluate", "nowhere")
    changed = replace(workplace, teacher=replace(workplace.teacher, steps=20))
    with pytest.raises(ValueError, match="^teacher.steps must be 10 as in theirs/glance.json, got 20$"):
        inputs.read(changed, inputs.of_bundle(changed, Path("theirs")))


@pytest.mark.parametrize("side", ["height", "width"])
def test_a_resolution_that_the_packing_cannot_divide_is_one_sentence(workplace, tmp_path, side):
    other = shutil.copytree("theirs", tmp_path / "other")
    manifest = json.loads((other / "glance.json").read_text()) | {side: 72}
    (other / "glance.json").write_text(json.dumps(manifest))
    wanted = f"{side} must be a positive multiple of 16 pixels, got 72"
    assert wanted in refused("generate", "a star", "--bundle", other, "--out", tmp_path / "images")
    changed = replace(workplace, teacher=replace(workplace.teacher, **{side: 72}))
    with pytest.raises(ValueError, match=wanted):
        inputs.read(changed, inputs.of_bundle(changed, other))


def test_a_hand_made_bundle_with_keys_that_match_nothing_is_refused_before_any_image(workplace, tmp_path):
    other = shutil.copytree("theirs", tmp_path / "other")
    write(other / "fast.safetensors", diffusers_keys("transformer_blocks.7.attn.to_q"))
    sentence = "changes transformer_blocks.7.attn.to_q, which the transformer"
    assert sentence in refused("generate", "a star", "--bundle", other, "--out", tmp_path / "images")
    assert sentence in refused("evaluate", other, "--out", tmp_path / "evaluation")
    assert list(tmp_path.iterdir()) == [other]


@pytest.fixture
def stages(tmp_path, monkeypatch):
    """A project whose stages ran, controls included, and a bundle `theirs` that runs like the pipeline's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    settings = small_params()
    make_artifacts(settings)
    shutil.copytree(artifacts.BUNDLE, "theirs")
    write(Path("theirs/slow.safetensors"), diffusers_keys(MODULE["flux"]))
    return settings


def test_controls_are_compared_where_they_are_there_and_run_alike(stages):
    theirs = Path("theirs")
    found = inputs.of_bundle(stages, theirs)
    assert found.controls == ("single", "official") and not found.trained_here
    assert found.trained("single") and not found.trained("slow")
    names = [arm.name for arm in inputs.read(stages, found).arms]
    assert {"single", "official", "student"} <= set(names)

    own = inputs.of_bundle(stages, artifacts.BUNDLE)
    assert own.trained_here and all(map(own.trained, ("slow", "fast", "single")))

    shutil.rmtree(artifacts.TRAIN_CONTROLS / "official_fast")
    assert inputs.of_bundle(stages, theirs).controls == ("single",)
    manifest = json.loads((theirs / "glance.json").read_text())
    (theirs / "glance.json").write_text(json.dumps(manifest | {"path": "official"}))
    assert inputs.of_bundle(stages, theirs).controls == (), "the controls were trained on another path"
