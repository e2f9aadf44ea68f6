"""metrics.json and the tables, of drawn images whose scores are known: complete, and the same bytes every time."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline import artifacts
from pipeline.evaluation.images import ImageSet
from pipeline.evaluation.scores import exam, measure, scoring
from tests.evaluation_case import draw, drawn_images, make_artifacts, no_progress, read, small_params

SETTINGS = small_params(prompts=18, batch=9, grid_prompts=4)
TABLES = {"metrics.json", "arms.csv", "quality_over_nfe.csv", "prompts.csv", "grid.png"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("scoring"))
        patch.delenv("DVC_ROOT", raising=False)
        make_artifacts(SETTINGS)
        draw(read(SETTINGS), artifacts.IMAGES)
        yield ImageSet.load(artifacts.IMAGES.resolve())


@pytest.fixture(scope="module")
def folder(images):
    scoring.score(SETTINGS.evaluation, images, artifacts.EVALUATION, no_progress)
    return artifacts.EVALUATION.resolve()


def test_two_evaluations_give_the_same_bytes(images, folder, tmp_path):
    assert {path.name for path in folder.iterdir()} == TABLES
    scoring.score(SETTINGS.evaluation, ImageSet.load(images.folder), tmp_path, no_progress)
    for name in TABLES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_metrics_have_the_keys_that_others_read_and_no_times(images, folder):
    metrics = artifacts.read_json(folder / "metrics.json")
    wanted = "nfe steps score score_low score_high retention retention_low retention_high"
    wanted += " fd_scenes psnr ssim diversity brightness_shift chroma_shift contrast detail"
    for row in metrics["arms"].values():
        assert list(row) == wanted.split()
    teacher, student = metrics["arms"]["teacher"], metrics["arms"]["student"]
    assert (teacher["nfe"], student["nfe"]) == (20, 4)
    assert (teacher["retention"], teacher["fd_scenes"], teacher["psnr"]) == (1, pytest.approx(0, abs=1e-6), None)
    own = (teacher[key] for key in ("brightness_shift", "chroma_shift", "contrast", "detail"))
    assert tuple(own) == (0, 0, 1, 1) and student["detail"] > 1.1, "noise is drawn over the student's images"
    assert sum(task["n"] for task in metrics["teacher_tasks"].values()) == metrics["prompts"] == 18
    assert set(metrics["teacher_tasks"]["position"]) == {"score", "low", "high", "n"}
    assert metrics["checker_truth"] == 1 and metrics["unscored"] == ""
    assert metrics["bundle_digest"] == images.origin.bundle_digest
    assert metrics["teacher_digest"] == images.origin.teacher_digest


def test_tables_agree_with_the_metrics(images, folder):
    metrics = artifacts.read_json(folder / "metrics.json")
    frame = pd.read_csv(folder / "arms.csv").set_index("arm")
    assert frame.loc["student", "retention"] == pytest.approx(metrics["arms"]["student"]["retention"])
    quality = pd.read_csv(folder / "quality_over_nfe.csv")
    assert list(quality["nfe"]) == sorted(quality["nfe"]) and set(quality["arm"]) == set(metrics["arms"])
    rows = pd.read_csv(folder / "prompts.csv")
    assert len(rows) == 18 * len(images.arms)
    of_student = rows[rows["arm"] == "student"]
    assert of_student["passed"].mean() == metrics["arms"]["student"]["score"]
    assert of_student["psnr"].mean() == pytest.approx(metrics["arms"]["student"]["psnr"], abs=1e-3)
    assert of_student["caption"].tolist() == images.prompts and of_student["seed"].iloc[0] == images.seed
    per_task = of_student.groupby("task")["passed"].mean()
    assert per_task["counting"] == metrics["tasks"]["student"]["counting"]["score"]


def test_the_grid_is_a_picture_of_every_shown_prompt(folder):
    with Image.open(folder / "grid.png") as picture:
        assert picture.size == (10 + 5 * 138, 50 + 4 * 164)
        pixels = np.asarray(picture)
    assert pixels.std() > 20


def test_measuring_the_teacher_against_itself(images):
    asked = exam.of(images.prompts, 0, 64, 64)
    found = measure.measure(images.arms, images.images, asked.judge, images.draws)
    np.testing.assert_allclose(found["teacher"].ssim, 1, atol=1e-5)
    assert found["teacher"].psnr.min() == found["teacher"].psnr.max() > 58
    assert not found["official"].passed.any() and found["teacher"].passed.any()
    assert found["student"].features.shape == (18, 88) and found["student"].spread.shape == (3,)


def test_arms_without_the_teacher_are_refused(images):
    students = [arm for arm in images.arms if arm.name == "student"]
    with pytest.raises(ValueError, match="the arms must include 'teacher', got .'student'."):
        measure.measure(students, drawn_images, None, images.draws)


def test_foreign_prompts_are_measured_without_a_score(images, tmp_path):
    (tmp_path / "prompts.txt").write_text("a lighthouse at dusk\n\na red star\n")
    settings, noise = small_params(prompts_file=str(tmp_path / "prompts.txt"), prompts=2), np.random.default_rng(0)
    draw(
        read(settings),
        tmp_path / "images",
        lambda arm, shard: noise.integers(0, 256, (len(shard.seeds), 64, 64, 3), dtype=np.uint8),
    )
    scoring.score(settings.evaluation, ImageSet.load(tmp_path / "images"), tmp_path, no_progress)
    metrics = artifacts.read_json(tmp_path / "metrics.json")
    assert "unlike 'a lighthouse at dusk'" in metrics["unscored"] and metrics["checker_truth"] is None
    assert metrics["arms"]["student"]["retention"] is None and metrics["arms"]["student"]["psnr"] > 0
    assert metrics["teacher_tasks"] == {} and metrics["agreement"] is None
    assert pd.read_csv(tmp_path / "prompts.csv")["passed"].isna().all()


def test_the_checker_reads_only_scenes_of_its_size():
    asked = exam.of(["a red star"], 0, 128, 64)
    assert asked.judge is None and asked.unscored == "the checker reads scenes of 64 x 64 pixels, these have 128 x 64"
