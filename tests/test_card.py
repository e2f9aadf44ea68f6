from pipeline.bundle import card
from tests.test_loras import HUB


def test_the_licence_is_the_teachers(tmp_path):
    file = tmp_path / "README.md"
    assert card.license_of(file) == "unknown"
    file.write_text("---\ntags: [x]\nlicense: apache-2.0\n---\nlicense: other\n")
    assert card.license_of(file) == "apache-2.0"
    file.write_text("license: other\n")
    assert card.license_of(file) == "unknown"


def test_a_card_names_the_hub():
    lines = card._fused({"file": HUB, "weight": 2.0, "sha256": "ab"})
    assert 'load_lora_weights("someone/shade", revision="main", weight_name="deep/shade.safetensors")' in lines
    assert "lora_scale=2.0" in lines
