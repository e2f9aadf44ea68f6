"""The model card: its lines make the image of `generate`, and it claims no stock call that would not."""

import re
from dataclasses import replace

import numpy as np
import pytest

from pipeline import artifacts, backbones
from pipeline.bundle import card
from pipeline.bundle.generating import SAMPLERS, Origin, generate
from pipeline.bundle.manifest import MANIFEST, Bundle
from pipeline.flow.solvers import SOLVERS
from tests.pairs import difference, make_pair
from tests.published import write_bundle
from tests.test_loras import HUB


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("pair"))


def test_the_models_card_runs(pair, monkeypatch):
    text = (pair.bundle.folder / "README.md").read_text()
    assert "license: unknown" in text
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    monkeypatch.chdir(pair.bundle.folder)
    scope = {}
    exec(code, scope)
    images = generate(pair.recorded.backbone(backbones.PARTS), pair.bundle, ["a red star"], [0])
    assert difference(images[0], np.asarray(scope["image"])) <= 1


def test_the_card_of_an_official_bundle_claims_no_stock_call(pair, tmp_path):
    official = pair.written(tmp_path / "official", path="official")
    text = (official.folder / "README.md").read_text()
    assert "```python" not in text and "sigmas=[" not in text and "$" not in text
    assert 'glance generate "a red star" --bundle .' in text and "A stock pipeline does not do that" in text


def test_a_bundle_of_another_solver_generates_with_it_and_claims_no_stock_call(pair, tmp_path):
    student = replace(pair.recorded.params.student, solver="ab2")
    made = pair.written(tmp_path / "ab2", student=student)
    backbone = pair.recorded.backbone(backbones.PARTS)
    assert made.solver == "ab2" and made.plan(backbone).solver == "ab2"
    text = (made.folder / "README.md").read_text()
    assert "```python" not in text and "steps of the solver `ab2`" in text and "$" not in text
    euler, second = (generate(backbone, bundle, ["a red star"], [0]) for bundle in (pair.bundle, made))
    assert difference(euler[0], second[0].numpy()) > 1
    origin = Origin.of(made)
    assert origin.solver == "ab2" and "Sampler: Adams-Bashforth 2," in origin.texts("a", 0)["parameters"]


def test_an_unknown_solver_is_refused(pair, tmp_path):
    made = pair.written(tmp_path / "made")
    content = artifacts.read_json(made.folder / MANIFEST)
    artifacts.write_json(made.folder / MANIFEST, content | {"solver": "heun"})
    with pytest.raises(ValueError, match="glance.json: solver must be one of euler, ab2, .*, got 'heun'"):
        Bundle.load(made.folder)


def test_every_solver_has_a_name_for_image_files():
    assert SAMPLERS.keys() == SOLVERS.keys()


def test_the_licence_is_the_teachers(tmp_path):
    file = tmp_path / "README.md"
    assert card.license_of(file) == "unknown"
    file.write_text("---\ntags: [x]\nlicense: apache-2.0\n---\nlicense: other\n")
    assert card.license_of(file) == "apache-2.0"
    file.write_text("license: other\n")
    assert card.license_of(file) == "unknown"


LORAS = [{"file": HUB, "weight": 2.0, "sha256": "ab"}]


def test_a_card_names_the_hub(tmp_path):
    manifest = artifacts.read_json(write_bundle(tmp_path / "bundle", path="consistent") / "glance.json")
    lines = card.text(manifest | {"solver": "euler", "loras": LORAS}, {}, imported=False)
    assert 'load_lora_weights("someone/shade", revision="main", weight_name="deep/shade.safetensors")' in lines
    assert "lora_scale=2.0" in lines
