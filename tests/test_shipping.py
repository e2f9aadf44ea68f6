"""A trained rival becomes a bundle that makes the images of its arm, and that is evaluated like a pair."""

import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline import artifacts, backbones, cli, shipping
from pipeline.bundle.generating import generate
from pipeline.bundle.manifest import Bundle
from pipeline.evaluation import inputs
from pipeline.evaluation.images import ImageSet
from pipeline.evaluation.report import figures
from pipeline.evaluation.samples import Shard
from pipeline.training.rivals import RIVALS
from tests.evaluation_case import draw, make_artifacts, read
from tests.test_imported_pair import write_params

NAMES = {"single": ["single"], "official": ["official_slow", "official_fast"]}
PROMPTS, SEEDS = ["a red star", "four rings on black"], [7, 8]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A project whose stages ran, controls included, as the working directory."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DVC_ROOT", str(folder))
        written = write_params()
        make_artifacts(written)
        yield written


@pytest.mark.parametrize("name", NAMES)
def test_the_bundle_of_a_rival_makes_the_images_of_its_arm(settings, name, tmp_path):
    done = CliRunner().invoke(cli.main, ["rival", name, str(tmp_path / "out")])
    assert done.exit_code == 0 and done.output == f"{tmp_path / 'out'}: 4 steps, rank 2\n", done.output
    bundle, given = Bundle.load(tmp_path / "out"), read(settings)
    assert list(bundle.files) == NAMES[name]
    assert (bundle.u, bundle.steps) == (given.bundle.u, given.bundle.steps)
    (arm,) = (arm for arm in given.arms if arm.name == name)
    assert arm.plan.adapters == tuple(phase.name for phase in bundle.phases for _ in phase.steps)
    images = given.sampler.images(arm, Shard(tuple(PROMPTS), tuple(SEEDS)))
    ours = generate(backbones.load(settings.teacher.path, "cpu"), bundle, PROMPTS, SEEDS)
    assert np.abs(ours.numpy().astype(int) - images).max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_the_bundle_of_a_rival_is_evaluated_as_the_student(settings, name, tmp_path):
    bundle = shipping.rival(name, settings, tmp_path / "out")
    given = inputs.read(settings, inputs.of_bundle(settings, bundle.folder))
    arms = {arm.name: arm for arm in given.arms}
    free = {"base_guided", "base_unguided", "base_guided_equal_cost", *settings.evaluation.free}
    assert arms.keys() == {"teacher", "student"} | free
    assert arms["student"].plan.adapters == tuple(phase.name for phase in bundle.phases for _ in phase.steps)
    assert given.adapter_digests.keys() == set(NAMES[name])
    draw(given, tmp_path / "images")
    phases = ImageSet.load(tmp_path / "images").origin.phases
    assert phases == {phase.name: list(phase.steps) for phase in bundle.phases}
    picture = figures.snr_over_steps([0, *range(1, settings.teacher.steps)], phases, "steps")
    assert all(f"{len(steps)} {phase} steps" in picture for phase, steps in phases.items())
    assert picture.count('class="handoff"') == len(phases) - 1


def test_a_rival_that_is_not_there_is_refused(settings, tmp_path):
    with pytest.raises(ValueError, match=f"NAME must be one of {', '.join(RIVALS)}, got 'singel'; did you mean single"):
        shipping.rival("singel", settings, tmp_path / "out")
    with pytest.raises(ValueError, match="OUT must not be there yet, got"):
        shipping.rival("single", settings, tmp_path)
    trained = artifacts.TRAIN_CONTROLS / "official_fast"
    shutil.move(trained, tmp_path / "away")
    with pytest.raises(
        ValueError, match="official_fast holds no adapter: name official in train_controls.arms, and run"
    ):
        shipping.rival("official", settings, tmp_path / "out")
    shutil.move(tmp_path / "away", trained)
    assert list(tmp_path.iterdir()) == []
