from pipeline import artifacts
from pipeline.bundle import card
from tests.published import write_bundle
from tests.test_loras import HUB


def test_the_licence_is_the_teachers(tmp_path):
    file = tmp_path / "README.md"
    assert card.license_of(file) == "unknown"
    file.write_text("---\ntags: [x]\nlicense: apache-2.0\n---\nlicense: other\n")
    assert card.license_of(file) == "apache-2.0"
    file.write_text("license: other\n")
    assert card.license_of(file) == "unknown"


def test_a_card_names_the_hub(tmp_path):
    manifest = artifacts.read_json(write_bundle(tmp_path / "bundle", path="consistent") / "glance.json")
    lines = card.text(manifest | {"loras": [{"file": HUB, "weight": 2.0, "sha256": "ab"}]}, {}, imported=False)
    assert 'load_lora_weights("someone/shade", revision="main", weight_name="deep/shade.safetensors")' in lines
    assert "lora_scale=2.0" in lines
