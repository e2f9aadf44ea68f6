"""The images of the arms on a real, tiny, random teacher: what they are, what is made, what is kept on disk."""

import shutil
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import artifacts, backbones, image_archives
from pipeline.bundle import generating
from pipeline.evaluation import generation, inputs, sampler, samples
from pipeline.evaluation.images import INDEX, ImageSet
from pipeline.evaluation.report import histories
from tests.evaluation_case import draw, drawn_images, make_artifacts, no_progress, read, small_params
from tests.test_dvc import LEFT_OUT, ROOT, closure
from tests.tiny import make_tiny_flux

SHARD = samples.Shard(("a red star", "two circles on black"), (3, 4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with the artifacts of the stages before the evaluation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("evaluation"))
        patch.delenv("DVC_ROOT", raising=False)
        make_artifacts(small_params())
        yield patch


@pytest.fixture(scope="module")
def given(folder):
    return read(small_params())


def arm(given, name):
    return next(arm for arm in given.arms if arm.name == name)


def test_the_student_makes_the_images_of_generate(given):
    made = given.sampler.images(arm(given, "student"), SHARD)
    given.sampler.weights.hold(())
    expected = generating.generate(given.sampler.backbone, given.bundle, list(SHARD.prompts), list(SHARD.seeds))
    np.testing.assert_array_equal(made, expected.numpy())


def test_the_base_is_the_stock_pipeline_and_stays_so_after_an_adapter(given):
    made = [given.sampler.images(arm(given, name), SHARD) for name in ("base_guided", "student", "base_guided")]
    np.testing.assert_array_equal(made[0], made[2])
    assert np.abs(made[0].astype(int) - made[1]).max() > 3
    teacher = given.params.teacher
    stock = given.sampler.backbone.pipeline(
        list(SHARD.prompts),
        negative_prompt=[""] * 2,
        true_cfg_scale=teacher.true_cfg_scale,
        guidance_scale=teacher.guidance_scale,
        num_inference_steps=4,
        height=teacher.height,
        width=teacher.width,
        max_sequence_length=teacher.max_sequence_length,
        generator=[torch.Generator().manual_seed(seed) for seed in SHARD.seeds],
        output_type="np",
    ).images
    assert np.abs((stock * 255).round().astype(int) - made[0]).max() <= 1


def test_every_adapter_makes_other_images(given):
    names = ("student", "slow_only", "fast_only", "single", "swapped", "official")
    images = [given.sampler.images(arm(given, name), SHARD) for name in names]
    assert len({image.tobytes() for image in images}) == len(names)


@pytest.mark.parametrize("count", [1, 16, 35])
def test_images_are_decoded_in_parts_as_they_are_at_once(given, count):
    one, sizes = given.sampler, []
    backbone, decode = one.backbone, one.backbone.decode
    latents = one.noise(range(count))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbone, "decode", lambda x, *how: sizes.append(len(x)) or decode(x, *how))
        made = one.decode(latents)
    whole = decode(latents, one.height, one.width).numpy()
    rounding = 0 if count <= sampler.DECODED_AT_ONCE else 1  # a kernel may round otherwise for another batch
    assert np.abs(made.astype(int) - whole).max() <= rounding
    assert sum(sizes) == count and max(sizes) <= sampler.DECODED_AT_ONCE


def test_an_unknown_adapter_is_refused(given):
    with pytest.raises(ValueError, match="an arm needs the adapter 'twin', got slow, fast, single, official_slow"):
        given.sampler.weights.hold(["twin"])


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """Generates with drawn images into a new folder: which arms' shards were made, and the set."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    make_artifacts(small_params())

    def generate(settings=None, fail_after=None):
        given, made = read(settings or small_params()), []

        def make(arm, shard):
            if len(made) == fail_after:
                raise KeyboardInterrupt
            made.append(arm.name)
            return drawn_images(arm, shard)

        draw(given, artifacts.IMAGES, make)
        return made, ImageSet.load(artifacts.IMAGES)

    return generate


def files(folder):
    return {file.relative_to(folder): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}


def test_the_images_of_every_arm_are_written_once_and_the_same_bytes_again(counted):
    made, found = counted()
    assert sorted(made) == sorted([arm.name for arm in found.arms] * 4), "two shards of prompts, two of seeds"
    first = files(artifacts.IMAGES)
    assert {path.name for path in first} == {
        INDEX, "prompts-00000.zip", "prompts-00001.zip", "seeds-00000.zip", "seeds-00001.zip",
    }  # fmt: skip
    shutil.rmtree(".glance")
    assert len(counted()[0]) == len(made) and files(artifacts.IMAGES) == first
    for arm in found.arms:
        for shard in (*found.draws.prompts, *found.draws.seeds):
            np.testing.assert_array_equal(found.images(arm, shard), drawn_images(arm, shard))
    assert (found.seed, len(found.prompts), found.origin.teacher_steps) == (100000, 7, 10)


def test_a_new_arm_makes_its_own_images_alone(counted):
    made, before = counted(small_params(swaps=()))
    assert not {"slow_only", "swapped"} & set(made)
    made, after = counted(small_params(swaps=("swapped",)))
    assert made == ["swapped"] * 4 and {arm.name for arm in after.arms} == {arm.name for arm in before.arms} | {
        "swapped"
    }


def test_a_new_student_makes_no_image_of_the_base_or_of_the_controls_anew(counted):
    counted()
    _replace_fast_adapter()
    made, _ = counted()
    assert set(made) == {"student", "fast_only", "swapped"}, "the arms with the adapter that changed"


def _replace_fast_adapter():
    from safetensors.torch import load_file

    file = artifacts.BUNDLE / "fast.safetensors"
    state = {key: tensor * 1.5 for key, tensor in load_file(file).items()}
    artifacts.save_safetensors(file, state, {"format": "pt"})


def test_a_generation_that_was_killed_goes_on_from_its_last_shard(counted):
    with pytest.raises(KeyboardInterrupt):
        counted(fail_after=7)
    assert not artifacts.IMAGES.exists() and not list(artifacts.ROOT.glob(".*.partial")), "whole or not at all"
    made, found = counted()
    assert len(made) == 4 * len(found.arms) - 7


def test_the_model_is_not_loaded_where_every_image_is_there(counted):
    counted()
    given = read(small_params())
    given = replace(given, load=lambda: pytest.fail("the model was loaded"))
    before = files(artifacts.IMAGES)
    generation.generate(given, artifacts.IMAGES, no_progress)
    assert files(artifacts.IMAGES) == before


def test_a_damaged_file_of_the_cache_is_made_again(counted):
    counted()
    given = read(small_params())
    path = samples.ImageCache(drawn_images, given.origin, given.adapter_digests).path(
        arm(given, "teacher"), ImageSet.load(artifacts.IMAGES).draws.prompts[0]
    )
    whole = path.read_bytes()
    path.unlink()  # the folder of images holds the same file
    path.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    made, _ = counted()
    assert made == ["teacher"] and path.read_bytes() == whole


def test_a_shard_is_named_by_what_it_depends_on(given):
    teacher, student = arm(given, "teacher"), arm(given, "student")
    store = samples.ImageCache(drawn_images, given.origin, given.adapter_digests)
    retrained = samples.ImageCache(drawn_images, given.origin, dict.fromkeys(given.states, "other"))
    elsewhere = samples.ImageCache(drawn_images, {"teacher": "other"}, given.adapter_digests)
    names = [
        store.path(teacher, SHARD),
        store.path(student, SHARD),
        store.path(teacher, replace(SHARD, seeds=(3, 5))),
        store.path(replace(teacher, true_cfg_scale=2.0), SHARD),
        retrained.path(student, SHARD),
        elsewhere.path(teacher, SHARD),
    ]
    assert len(set(names)) == len(names)
    assert retrained.path(teacher, SHARD) == store.path(teacher, SHARD), "the base does not depend on adapters"


def test_the_code_that_names_an_image_is_what_the_sampler_imports():
    named = {path.relative_to(ROOT).as_posix() for pattern in inputs.IMAGE_CODE for path in ROOT.glob(pattern)}
    imported = closure(ROOT / "pipeline" / "evaluation" / "sampler.py")
    families = {file for file in imported if file.startswith("pipeline/families/")}
    assert imported - families <= named | LEFT_OUT.keys()
    assert all(any(fnmatch(file, pattern) for file in imported) for pattern in inputs.IMAGE_CODE)


def test_other_packages_or_another_device_make_other_images(given, monkeypatch):
    monkeypatch.setattr(inputs, "version", lambda name: "0")
    assert read(given.params).origin["packages"] != given.origin["packages"]
    resolve = backbones.resolve_device
    monkeypatch.setattr(
        backbones, "resolve_device", lambda name: torch.device("cuda" if name == "auto" else resolve(name))
    )
    assert read(given.params).origin["device"] == "cuda" != given.origin["device"]


def test_draws_cover_every_prompt_once_and_never_share_noise():
    names = [f"prompt {i}" for i in range(10)]
    drawn = samples.draws(names, seed=100, batch=4, diversity_prompts=3, diversity_seeds=3)
    assert [p for shard in drawn.prompts for p in shard.prompts] == names
    seeds = [seed for shard in (*drawn.prompts, *drawn.seeds) for seed in shard.seeds]
    assert seeds == list(range(100, 119)) and drawn.images == 19
    assert [shard.prompts for shard in drawn.seeds] == [(name,) * 3 for name in ("prompt 0", "prompt 4", "prompt 9")]
    assert list(drawn.files.values()) == [*(f"prompts-0000{i}.zip" for i in range(3)), *(
        f"seeds-0000{i}.zip" for i in range(3)
    )]  # fmt: skip


def test_no_prompt_is_refused():
    with pytest.raises(ValueError, match="evaluation.prompts must be at least 1, got 0"):
        samples.draws([], 0, 4, 1, 2)


def test_pick_finds_images_across_shards(given):
    drawn = samples.draws(given.prompts, 0, 4, 1, 2).prompts
    teacher = arm(given, "teacher")
    found = samples.pick(drawn_images, teacher, drawn, [5, 0, 4])
    whole = np.concatenate([drawn_images(teacher, shard) for shard in drawn])
    np.testing.assert_array_equal(found, whole[[5, 0, 4]])


def test_what_is_wrong_with_a_folder_of_images_is_one_sentence(counted):
    _, found = counted()
    shard = found.draws.prompts[0]
    file = artifacts.IMAGES / "student" / found.draws.files[shard]
    file.unlink()
    with pytest.raises(FileNotFoundError, match=str(file)):
        found.images(arm(found, "student"), shard)
    file.write_bytes(b"torn")
    with pytest.raises(ValueError, match=rf"{file} is no archive of images"):
        found.images(arm(found, "student"), shard)
    image_archives.pack(file, np.zeros((4, 8, 8, 3), dtype=np.uint8), range(4))
    with pytest.raises(ValueError, match=r"must hold images of shape \(4, 64, 64, 3\), as index.json says, got \(4, 8"):
        found.images(arm(found, "student"), shard)

    content = artifacts.read_json(artifacts.IMAGES / INDEX)
    wrong = [
        (content | {"version": 0}, "version must be 2, got 0"),
        (
            content | {"arms": [{"name": "pupil", "steps": 1, "nfe": 1}]},
            ".*missing 2 required positional arguments: 'title' and 'question'",
        ),
        ({key: value for key, value in content.items() if key != "seeds"}, "'seeds'"),
    ]
    for changed, message in wrong:
        artifacts.write_json(artifacts.IMAGES / INDEX, changed)
        with pytest.raises(
            ValueError, match=rf"images/index.json is not a list of images \({message}\): run `dvc repro`"
        ):
            ImageSet.load(artifacts.IMAGES)


def test_a_bundle_of_another_teacher_is_refused(folder, tmp_path):
    settings = small_params()
    other = make_tiny_flux(tmp_path / "teacher", seed=1)
    with pytest.raises(ValueError, match="artifacts/bundle must belong to the teacher in .*, got a bundle for sha256:"):
        read(replace(settings, teacher=replace(settings.teacher, path=str(other))))


def test_histories_are_found_by_adapter(folder, tmp_path):
    found = histories.read(artifacts.TRAIN_SLOW, tmp_path, artifacts.TRAIN_CONTROLS)
    assert set(found) == {"slow", "single", "official_slow", "official_fast"}
    assert found["slow"][:2] == [(0, 1.0), (1, 0.5)] and len(found["single"]) == 10
