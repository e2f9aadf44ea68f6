"""The machinery of the official benchmarks on a tiny teacher: prompts, images, scores and the table."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file

from pipeline import artifacts, image_files, params
from pipeline.benchmarking import arms, collect, evalscope, external, generate, manifest, page, places, prepare, score
from pipeline.benchmarking import settings as settings_of
from pipeline.benchmarking.generate import Part
from pipeline.benchmarking.scorers import Entry, table
from pipeline.benchmarking.settings import Environment
from pipeline.evaluation.benchmarks import Column
from pipeline.evaluation.benchmarks import table as benchmarks
from pipeline.evaluation.benchmarks.official import Distance
from pipeline.evaluation.benchmarks.selftest import SELFTEST
from pipeline.evaluation.sampler import Sampler
from tests.evaluation_case import make_artifacts, no_progress, small_params
from tests.test_rival_params import LIGHTNING

ROOT = Path(__file__).parent.parent
ARMS = ("teacher", "base_guided", "student")


class Stop(BaseException):
    """What a kill looks like from within."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a tiny teacher, its pair and its controls."""
    folder = tmp_path_factory.mktemp("benchmarking")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        make_artifacts(small_params())
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A working directory with these artifacts and the shipped settings."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("artifacts").symlink_to(trained / "artifacts")
    Path("benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks" / "params.yaml", "benchmarks")
    prepare.prepare("selftest")
    return tmp_path


@pytest.fixture
def settings(here):
    """The shipped settings, cut to a few prompts at once, with the script that stands in for an official scorer."""
    environment = Environment(python=sys.executable, checkout=ROOT / "benchmarks" / "selftest")
    shipped = settings_of.load()
    return replace(shipped, batch=4, bootstrap=200, sides=2, external={"selftest_red": environment})


@pytest.fixture(scope="module")
def known(trained):
    """The arms, whose models are loaded once for all tests."""
    loaded = settings_of.load(ROOT / "benchmarks" / "params.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained)
        found = arms.find(ARMS, small_params(), loaded)
        _ = found[0].inputs.sampler  # every arm shares it
    return {arm.name: arm for arm in found}


def make(known, settings, *names, part=None):
    """Generates some arms."""
    part = part or Part()
    return [generate.generate(SELFTEST, known[name], settings, no_progress, part) for name in names or ARMS]


def images(name="student"):
    """The bytes of an arm's images, by file."""
    found = manifest.load("selftest", name)
    return {file: (Path(found.folder) / file).read_bytes() for file in found.images}


def test_a_pair_gets_its_table_and_its_page(known, settings):
    make(known, settings)
    assert score.score(SELFTEST, ARMS, settings, "cpu", no_progress) == []
    assert external.score(SELFTEST, ARMS, settings) == []
    found = collect.collect(["selftest"], settings, "tiny")
    collect.write(found)
    file = page.write(found, settings.sides)
    rows = pd.read_csv(places.RESULTS / "table.csv")
    assert list(rows["arm"]) == list(ARMS) * 2 and set(rows["images"]) == {16} and set(rows["prompts"]) == {8}
    teacher = rows[rows["arm"] == "teacher"]
    assert (teacher[["retention", "retention_low", "retention_high"]] == 1).all(axis=None)
    student = rows[(rows["arm"] == "student") & (rows["metric"] == "selftest_brightness")].iloc[0]
    own = [np.asarray(Image.open(place).convert("L")).mean() / 255 for place in sorted(_files("student"))]
    theirs = [np.asarray(Image.open(place).convert("L")).mean() / 255 for place in sorted(_files("teacher"))]
    assert student["value"] == pytest.approx(np.mean(own), abs=2e-3)
    assert student["retention"] == pytest.approx(np.mean(own) / np.mean(theirs), abs=2e-3)
    assert student["retention_low"] < student["retention"] < student["retention_high"]
    content = artifacts.read_json(places.RESULTS / "metrics.json")["selftest"]
    assert content["bundle_digest"] == known["student"].inputs.bundle_digest and not content["subset"]
    text = file.read_text()
    assert "Self-test" in text and text.count("<img") == 2 * len(ARMS) and "Not scored yet" not in text


def _files(arm):
    return Path(manifest.load("selftest", arm).folder).glob("*.png")


def test_every_arm_starts_from_the_same_noise(known, settings, monkeypatch):
    shards, original = [], Sampler.images
    monkeypatch.setattr(Sampler, "images", lambda self, arm, shard: shards.append(shard) or original(self, arm, shard))
    make(known, replace(settings, seed=7))
    per_arm = [shards[i : i + 4] for i in (0, 4, 8)]
    assert per_arm[0] == per_arm[1] == per_arm[2]
    assert [seed for shard in per_arm[0] for seed in shard.seeds] == list(range(7, 23))


@pytest.mark.parametrize("stop", [1, 3, 6, 11])
def test_a_stopped_generation_goes_on_to_the_same_bytes(known, settings, monkeypatch, stop):
    make(known, settings, "student")
    whole, folder = images(), Path(manifest.load("selftest", "student").folder)
    shutil.rmtree(folder)
    places.manifest("selftest", "student").unlink()
    save, saved = image_files.save, []

    def stopping(image, path, texts=None):
        if len(saved) == stop:
            path.write_bytes(whole[path.name][: len(whole[path.name]) // 2])  # as if the disk had kept half of it
            raise Stop
        save(image, path, texts)
        saved.append(path)

    monkeypatch.setattr(image_files, "save", stopping)
    with pytest.raises(Stop):
        make(known, settings, "student")
    assert not places.manifest("selftest", "student").exists()
    kept = {path: path.stat().st_mtime_ns for path in saved}
    monkeypatch.setattr(image_files, "save", save)
    make(known, settings, "student")
    assert images() == whole
    assert {path: path.stat().st_mtime_ns for path in saved} == kept, "what was there is not made anew"


def test_a_subset_has_the_images_of_the_whole_and_is_marked(known, settings):
    make(known, settings, "student")
    whole = images()
    shutil.rmtree(manifest.load("selftest", "student").folder)
    subset = replace(settings, limit=1)
    make(known, subset, "teacher", "student")
    part = images()
    assert len(part) == 12 and part.items() <= whole.items(), "one prompt of each of six tasks, two images each"
    score.score(SELFTEST, ["teacher", "student"], subset, "cpu", no_progress)
    found = collect.collect(["selftest"], subset, "")
    assert all(row.subset and row.prompts == 6 for row in found[0].rows)
    page.write(found, 0)
    assert "a subset" in (places.RESULTS / "report.html").read_text()


def test_parts_make_the_whole(known, settings):
    assert make(known, settings, "student", part=Part(number=2, of=3)) == [None]
    assert make(known, settings, "student", part=Part.parse("1/3")) == [None]
    found = make(known, settings, "student", part=Part(number=3, of=3))[0]
    parts = images()
    shutil.rmtree(found.folder)
    make(known, settings, "student")
    assert images() == parts


def test_one_model_is_held_at_a_time(settings, trained):
    shared = arms.find(["teacher", "student"], small_params(), settings)
    other = arms.find(
        ["theirs"], small_params(), replace(settings, bundles={"theirs": str(trained / "artifacts/bundle")})
    )
    held = []
    for _ in generate.generate_all(SELFTEST, [*shared, *other], replace(settings, limit=1), no_progress):
        held.append(["sampler" in vars(arm.inputs) for arm in (*shared, *other)])
    assert held == [[True, True, False], [True, True, False], [False, False, True]]
    assert not any("sampler" in vars(arm.inputs) for arm in (*shared, *other))


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_a_part_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=f"--shard must be i/n with i from 1 to n, got {text}"):
        Part.parse(text)


def given(settings, folder):
    """An arm whose images were made elsewhere."""
    return arms.find(["theirs"], small_params(), replace(settings, folders={"theirs": folder}))[0]


def elsewhere(settings, folder, suffix=".png"):
    """Sixteen images as another tool would leave them."""
    folder.mkdir()
    for index in range(8):
        for number in range(2):
            image = np.full((64, 64, 3), 16 * index + number, dtype=np.uint8)
            Image.fromarray(image).save(folder / f"{index:05d}_{number}{suffix}")
    return given(settings, folder)


def test_images_made_elsewhere_are_an_arm(known, settings, tmp_path):
    arm = elsewhere(settings, tmp_path / "theirs", ".webp")
    make(known, settings, "teacher")
    found = generate.generate(SELFTEST, arm, settings, no_progress)
    assert (found.nfe, found.seed, found.height) == (None, None, 64)
    score.score(SELFTEST, ["teacher", "theirs"], settings, "cpu", no_progress)
    rows = collect.collect(["selftest"], settings, "")[0].rows
    assert [row.arm for row in rows] == ["teacher", "theirs"] and rows[1].nfe is None


LORA = LIGHTNING | {"weights": "one.safetensors", "steps": 2}


def test_the_rivals_of_the_project_are_arms_too(settings, tmp_path):
    """A folder is taken as it is; of the published weights, only those that are asked for are read."""
    elsewhere(settings, tmp_path / "pi_flow")
    module = "transformer.transformer_blocks.0.attn.to_q"
    halves = {f"{module}.lora_A.weight": torch.ones(2, 32), f"{module}.lora_B.weight": torch.ones(32, 2)}
    (tmp_path / "rivals").mkdir()
    save_file(halves, tmp_path / "rivals" / "one.safetensors")
    missing = LORA | {"weights": "missing.safetensors"}
    rivals = {"two_steps": LORA, "pi_flow": {"images": str(tmp_path / "pi_flow")}, "missing": missing}
    values = replace(small_params(), rivals=rivals)
    made, taken = arms.find(["two_steps", "pi_flow"], values, settings)
    assert (made.arm.title, made.arm.nfe, made.arm.plan.sigmas[0]) == ("Two steps", 2, 1)
    found = generate.generate(SELFTEST, made, settings, no_progress)
    assert (found.arm, found.steps, len(found.images)) == ("two_steps", 2, 16)
    assert len(generate.generate(SELFTEST, taken, settings, no_progress).images) == 16
    (tmp_path / "pi_flow" / "00003_1.png").unlink()
    with pytest.raises(
        ValueError, match="rivals.pi_flow.images must hold an image 00003_1.png for each prompt of self"
    ):
        generate.generate(SELFTEST, taken, settings, no_progress)
    with pytest.raises(
        ValueError, match="the LoRA rivals/missing.safetensors is missing: copy it to rivals/missing.sa"
    ):
        arms.find(["missing"], values, settings)
    shutil.rmtree(tmp_path / "pi_flow")
    with pytest.raises(ValueError, match="rivals.pi_flow.images must be a folder of images, got .*pi_flow"):
        arms.find(["pi_flow"], values, settings)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("student", "rivals must have names that no other arm has, got student"),
        ("theirs", "rivals must have names that bundles and folders lack, got theirs"),
    ],
)
def test_a_rival_with_the_name_of_another_arm_is_refused(settings, tmp_path, name, message):
    values = replace(small_params(), rivals={name: LORA})
    with pytest.raises(ValueError, match=message):
        arms.find(["teacher"], values, replace(settings, folders={"theirs": tmp_path}))


def test_images_made_elsewhere_must_be_whole_and_alike(settings, tmp_path):
    arm = elsewhere(settings, tmp_path / "theirs")
    file = tmp_path / "theirs" / "00003_1.png"
    whole = file.read_bytes()
    for broken, rule in (
        (None, "folders.theirs must hold an image 00003_1.png for each prompt of selftest"),
        (whole[: len(whole) // 2], "00003_1.png must be a whole image, and cannot be read"),
        ("other size", "folders.theirs must hold images of one size, got 64 x 64"),
    ):
        if broken is None:
            file.unlink()
        elif broken == "other size":
            Image.new("RGB", (32, 64)).save(file)
        else:
            file.write_bytes(broken)
        with pytest.raises(ValueError, match=rule):
            generate.generate(SELFTEST, arm, settings, no_progress)
        assert not places.manifest("selftest", "theirs").exists()


@pytest.mark.parametrize("harm", ["swapped", "truncated", "missing"])
def test_an_image_that_is_no_longer_the_arms_is_not_scored(known, settings, harm):
    make(known, settings, "student")
    first, second = sorted(_files("student"))[:2]
    if harm == "swapped":
        one, other = first.read_bytes(), second.read_bytes()
        first.write_bytes(other), second.write_bytes(one)
    elif harm == "truncated":
        first.write_bytes(first.read_bytes()[:100])
    else:
        first.unlink()
    rule = "is missing: run `glance benchmark generate" if harm == "missing" else "is not the image that student made"
    with pytest.raises(ValueError, match=rule):
        score.score(SELFTEST, ["student"], settings, "cpu", no_progress)
    with pytest.raises(ValueError, match=rule):
        external.score(SELFTEST, ["student"], settings)
    assert not list(places.SCORES.rglob("*.json"))
    if harm != "missing":
        first.unlink()
        second.unlink()
    make(known, settings, "student")
    assert score.score(SELFTEST, ["student"], settings, "cpu", no_progress) == []


def test_a_scorer_that_crashes_goes_on_after_its_last_block(known, settings, monkeypatch):
    make(known, settings, "student")
    entry, calls = table.SCORERS["brightness"], []
    monkeypatch.setattr(score, "BLOCK", 4)

    class Crashing:
        def fields(self, images, items):
            calls.append(len(images))
            if len(calls) == 3:
                raise Stop
            return entry.load({}, None).fields(images, items)

    monkeypatch.setitem(table.SCORERS, "brightness", replace(entry, load=lambda places, device: Crashing()))
    with pytest.raises(Stop):
        score.score(SELFTEST, ["student"], settings, "cpu", no_progress)
    assert not list(places.SCORES.rglob("*.json"))
    score.score(SELFTEST, ["student"], settings, "cpu", no_progress)
    assert calls == [4] * 5, "two blocks, the crash, and the two that were left"
    monkeypatch.setitem(table.SCORERS, "brightness", entry)
    resumed = places.scores("selftest", "student", "brightness").read_bytes()
    places.scores("selftest", "student", "brightness").unlink()
    score.score(SELFTEST, ["student"], settings, "cpu", no_progress)
    assert places.scores("selftest", "student", "brightness").read_bytes() == resumed


def test_a_value_that_is_no_number_is_refused_with_its_image(known, settings, monkeypatch):
    make(known, settings, "student")
    entry = table.SCORERS["brightness"]

    class Broken:
        def fields(self, images, items):
            return [{"brightness": float("nan")} for _ in images]

    monkeypatch.setitem(table.SCORERS, "brightness", replace(entry, load=lambda places, device: Broken()))
    with pytest.raises(ValueError, match="brightness must give finite numbers, got NaN or infinity for .*00000_0.png"):
        score.score(SELFTEST, ["student"], settings, "cpu", no_progress)
    assert not list(places.SCORES.rglob("*.json"))


def with_options(settings, **options):
    environment = settings.external["selftest_red"]
    return replace(settings, external={"selftest_red": replace(environment, options=options)})


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"crash_after": "5"}, r"selftest_red ended with exit code 1; .* stopped after 5 rows, as asked"),
        ({"drop": "3.png"}, r"must hold 16 values, 2 for each of 8 prompts, got 14: .* missing is image 0 of prompt 3"),
    ],
)
def test_an_official_scorer_that_fails_leaves_nothing_and_runs_anew(known, settings, options, rule):
    make(known, settings, "student")
    with pytest.raises(ValueError, match=rule):
        external.score(SELFTEST, ["student"], with_options(settings, **options))
    assert not places.scores("selftest", "student", "selftest_red").exists()
    assert external.score(SELFTEST, ["student"], settings) == []
    assert places.scores("selftest", "student", "selftest_red").is_file()


def test_an_official_scorer_can_be_run_by_hand(known, settings):
    make(known, settings, "student")
    (waiting,) = external.score(SELFTEST, ["student"], replace(settings, external={}))
    assert waiting.missing == ("external.selftest_red.python", "external.selftest_red.checkout")
    alone = subprocess.run(["sh", waiting.script], capture_output=True, text=True)
    assert alone.returncode != 0 and "the Python of the scorer's environment" in alone.stderr
    checkout = str(ROOT / "benchmarks" / "selftest")
    environment = {"PYTHON": sys.executable, "CHECKOUT": checkout, "PATH": "/usr/bin:/bin"}
    subprocess.run(["sh", waiting.script], env=environment, check=True)
    assert external.score(SELFTEST, ["student"], replace(settings, external={})) == []
    assert len(json.loads(places.scores("selftest", "student", "selftest_red").read_text())["values"]) == 16


OFFICIAL = '''
"""Stands in for GenEval's scorer: the official arguments and output, and a verdict by brightness."""

import argparse, json, os
from PIL import Image, ImageStat

parser = argparse.ArgumentParser()
parser.add_argument("images")
parser.add_argument("--outfile")
parser.add_argument("--model-path")
options = parser.parse_args()
assert os.path.isdir(options.model_path)
with open(options.outfile, "w") as out:
    for folder in os.listdir(options.images):
        metadata = json.load(open(os.path.join(options.images, folder, "metadata.jsonl")))
        for name in sorted(os.listdir(os.path.join(options.images, folder, "samples"))):
            file = os.path.join(options.images, folder, "samples", name)
            correct = ImageStat.Stat(Image.open(file).convert("L")).mean[0] > 100
            said = {"filename": file, "tag": metadata["tag"], "prompt": metadata["prompt"], "correct": correct}
            out.write(json.dumps({**said, "reason": "", "metadata": json.dumps(metadata), "details": "{}"}) + "\\n")
'''


def test_geneval_goes_its_whole_official_path(known, settings, tmp_path):
    (checkout := tmp_path / "checkout" / "evaluation").mkdir(parents=True)
    (checkout / "evaluate_images.py").write_text(OFFICIAL)
    (checkout / "summary_scores.py").write_text("")
    shutil.copytree(ROOT / "benchmarks" / "prompts", places.PROMPTS)
    prepare.prepare("geneval")
    geneval = benchmarks.BENCHMARKS["geneval"]
    environment = Environment(python=sys.executable, checkout=checkout.parent, options={"detector": str(tmp_path)})
    settings = replace(settings, limit=2, batch=8, external={"geneval": environment})
    for name in ("teacher", "student"):
        generate.generate(geneval, known[name], settings, no_progress)
    assert external.score(geneval, ["teacher", "student"], settings) == []
    strict = {row.metric for row in collect.collect(["geneval"], settings, "qwen-image")[0].rows}
    assert strict == {"geneval", *(f"geneval_{tag}" for tag in geneval.counts)}
    found = manifest.load("geneval", "student")
    verdicts = {tag: [] for tag in geneval.counts}
    for index, item in manifest.chosen(geneval, found):
        for number in range(4):
            grey = np.asarray(Image.open(found.path(index, number)).convert("L"))
            verdicts[item.category].append(grey.mean() > 100)
    rows = {row.metric: row for row in collect.collect(["geneval"], settings, "")[0].rows if row.arm == "student"}
    assert rows["geneval"].value == pytest.approx(np.mean([np.mean(own) for own in verdicts.values()]))
    assert rows["geneval"].prompts == 12 and rows["geneval"].images == 48 and rows["geneval"].subset


def test_arms_that_differ_are_not_compared(known, settings, monkeypatch):
    make(known, settings, "teacher")
    make(known, replace(settings, seed=100), "student")
    score.score(SELFTEST, ["teacher", "student"], settings, "cpu", no_progress)
    with pytest.raises(ValueError, match="selftest: student must have the seed of teacher, 0, got 100"):
        collect.collect(["selftest"], settings, "")
    make(known, settings, "student")
    with pytest.raises(ValueError, match="of other images than student has now: run `glance benchmark score selftest`"):
        collect.collect(["selftest"], settings, "")
    entry = replace(table.SCORERS["brightness"], version=2)
    monkeypatch.setitem(table.SCORERS, "brightness", entry)
    score.score(SELFTEST, ["student"], settings, "cpu", no_progress)
    with pytest.raises(ValueError, match="brightness must be the same for all arms, got other version for student"):
        collect.collect(["selftest"], settings, "")


def test_an_arm_that_lacks_a_score_is_not_left_out(known, settings):
    make(known, settings, "teacher", "student")
    score.score(SELFTEST, ["teacher"], settings, "cpu", no_progress)
    with pytest.raises(ValueError, match="brightness has not scored student yet"):
        collect.collect(["selftest"], settings, "")


def test_a_broken_scorer_is_noticed_by_the_teachers_score(known, settings, monkeypatch):
    make(known, settings, "teacher")
    score.score(SELFTEST, ["teacher"], settings, "cpu", no_progress)
    strict = replace(SELFTEST, sanity={"selftest_brightness": 2.0})
    monkeypatch.setitem(benchmarks.BENCHMARKS, "selftest", strict)
    with pytest.raises(ValueError, match="brightness of the teacher must be at least 2, got 0.* broken"):
        collect.collect(["selftest"], settings, "")


class Colours:
    """Mean colours as features."""

    def features(self, images):
        return np.array([np.asarray(image).reshape(-1, 3).mean(axis=0) for image in images], dtype=np.float32)


def test_distances_compare_with_the_teacher_and_with_photographs(known, settings, tmp_path, monkeypatch):
    entry = Entry(
        name="colours", version=1, about="", weights=(), packages=(), load=lambda *_: Colours(), extracts=True, batch=3
    )
    monkeypatch.setitem(table.SCORERS, "colours", entry)
    asked = replace(
        SELFTEST,
        metrics=(),
        distances=tuple(
            Distance(
                column=Column(f"{kind}_{reference}", kind, 2, better="lower"),
                scorer="colours",
                kind=kind,
                reference=reference,
            )
            for kind in ("fid", "kid")
            for reference in ("teacher", "real")
        ),
    )
    monkeypatch.setitem(benchmarks.BENCHMARKS, "selftest", asked)
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for i in range(6):
        Image.new("RGB", (40 + i, 30), (20 * i, 255 - 20 * i, 7 * i)).save(photographs / f"{i}.jpg")
    settings = replace(settings, references={"selftest": photographs})
    make(known, settings, "teacher", "student")
    score.score(asked, ["teacher", "student"], settings, "cpu", no_progress)
    rows = {(row.metric, row.arm): row for row in collect.collect(["selftest"], settings, "")[0].rows}
    assert rows.keys() == {
        ("fid_teacher", "student"),
        ("kid_teacher", "student"),
        *((f"{kind}_real", arm) for kind in ("fid", "kid") for arm in ("teacher", "student")),
    }
    student, teacher = rows["fid_real", "student"], rows["fid_real", "teacher"]
    assert student.retention is None and student.difference == pytest.approx(student.value - teacher.value)
    assert student.interval == "subsampling" and student.difference_low < student.difference < student.difference_high


def test_a_list_for_evalscope_names_every_image(known, settings, tmp_path):
    make(known, settings, "student")
    assert evalscope.write(SELFTEST, "student", tmp_path / "list.jsonl") == 16
    lines = [json.loads(line) for line in (tmp_path / "list.jsonl").read_text().splitlines()]
    assert all(line.keys() == {"id", "prompt", "image_path"} for line in lines)
    assert all(Path(line["image_path"]).is_file() for line in lines)
    assert len({line["id"] for line in lines}) == 16


def test_prompts_are_checked_before_they_are_kept(here, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="the benchmark must be one of .* got 'genevall'; did you mean geneval?"):
        prepare.prepare("genevall")
    with pytest.raises(ValueError, match="the prompts of dpg are not here: run `glance benchmark prepare dpg`"):
        prepare.items("dpg")
    shipped = ROOT / "benchmarks" / "prompts" / "geneval" / "evaluation_metadata.jsonl"
    damaged = tmp_path / "evaluation_metadata.jsonl"
    damaged.write_text("\n".join(shipped.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(ValueError, match="evaluation_metadata.jsonl must have the sha256 5c48e0813e81"):
        prepare.prepare("geneval", damaged)
    with pytest.raises(ValueError, match="--from must hold prompts/evaluation_metadata.jsonl, got .* without it"):
        (tmp_path / "empty").mkdir()
        prepare.prepare("geneval", tmp_path / "empty")
    assert not places.data("geneval").exists()
    assert len(prepare.prepare("geneval", shipped.parent)) == 553
    source = json.loads((places.data("geneval") / "source.json").read_text())
    assert source["prompts"] == 553 and source["licence"].startswith("MIT")


def test_without_the_site_the_message_says_which_file_to_put_where(here, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    sentence = "the hub does not give .* of ymhao/HPDv2: go online, or get that file .* prepare hpsv2 --from FOLDER"
    with pytest.raises(ValueError, match=sentence):
        prepare.prepare("hpsv2")
    with pytest.raises(ValueError, match="coco has no prompts of its own: run `glance benchmark prepare coco --from"):
        prepare.prepare("coco")


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("limit", 0, "limit must be an integer of at least 1 or null, got 0"),
        ("seed", -1, "seed must be an integer of at least 0, got -1"),
        ("arms", [], r"arms must be a list of names, got \[\]"),
        ("arms", ["a/b"], "arms must be names of letters, digits, dots and dashes, got 'a/b'"),
        ("folders", {"a": 1}, "folders must name a path for each name"),
        ("external", {"geneval": {"pyton": "x"}}, "external.geneval must hold python, checkout, options"),
        ("external", {"geneval": {"python": 3}}, "external.geneval.python must be a path or null, got 3"),
        ("batches", 3, "batches is not a key of .*; did you mean batch?"),
    ],
)
def test_wrong_settings_are_refused_by_name(here, key, value, rule):
    content = params.read(settings_of.FILE)
    content[key] = value
    artifacts.write_json(settings_of.FILE, content)  # JSON is YAML
    with pytest.raises(ValueError, match=rule):
        settings_of.load()


def test_unknown_arms_are_refused(here, settings):
    with pytest.raises(ValueError, match="arms must be among .*, got 'studnt'; did you mean student?"):
        arms.find(["studnt"], small_params(), settings)
