"""The schema of glance.json: what it takes, what it refuses in which words, and that it names what the code knows."""

import json
import re

import pytest
from jsonschema import Draft202012Validator

from pipeline.backbones.teacher import DTYPES
from pipeline.bundle import schemas
from pipeline.bundle.manifest import Bundle
from pipeline.bundle.parts import NAME, Retention
from pipeline.flow.solvers import SOLVERS
from pipeline.flow.stepping import PATHS
from tests.published import ROOT, write_bundle

METRICS = {
    "prompts": 504,
    "arms": {
        "student": {"nfe": 8, "retention": 1.004, "retention_low": 0.97, "retention_high": 1.03},
        "teacher": {"nfe": 100, "retention": 1.0},
    },
}


@pytest.fixture
def folder(tmp_path):
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def content(folder):
    return json.loads((folder / "glance.json").read_text())


def objects(schema, name=""):
    """Every object of a schema with its own keys, by name."""
    for key, value in schema.get("properties", {}).items():
        for part in (value, value.get("items", {}), *value.get("anyOf", [])):
            yield from objects(part, f"{name}.{key}".strip("."))
    if "properties" in schema:
        yield name, schema


def test_the_schema_is_a_schema_and_describes_every_key():
    Draft202012Validator.check_schema(schemas.schema())
    found = dict(objects(schemas.schema()))
    assert found.keys() == {"", "loras", "phases", "handoffs", "guidance", "retention"}
    for name, one in found.items():
        assert one["additionalProperties"] is False, name
        assert all(value["description"].endswith(".") for value in one["properties"].values()), name
        assert set(one["properties"]) - set(one["required"]) == ({"phase"} if name == "" else set()), name


def test_the_schema_has_a_file_of_its_own_version():
    assert schemas.FILE.name == f"glance-{schemas.FORMAT}.json"
    assert schemas.schema()["properties"]["format"] == {**schemas.schema()["properties"]["format"], "const": 3}


def test_the_schema_names_what_the_code_knows():
    properties = schemas.schema()["properties"]
    assert properties["path"]["enum"] == list(PATHS)
    assert properties["solver"]["enum"] == list(SOLVERS)
    assert properties["dtype"]["enum"] == list(DTYPES)
    assert schemas.schema()["$defs"]["name"]["pattern"] == f"^{NAME.pattern}$"


def test_the_page_lists_every_key_with_what_the_schema_says():
    """docs/contract.md has a row `key` | meaning for each key of each object."""
    text = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8").partition("## In the header")[0]
    rows = dict(re.findall(r"^\| `([\w.]+)` \| ([^|]+?) \|", text, re.MULTILINE))
    wanted = {}
    for name, one in objects(schemas.schema()):
        for key, value in one["properties"].items():
            wanted[f"{name}.{key}".strip(".")] = value["description"].rstrip(".")
    assert rows == wanted


def test_a_bundle_has_the_contract_of_its_manifest(folder, content):
    bundle = Bundle.load(folder)
    assert bundle.to_json() == content
    assert Bundle.from_json(json.loads(json.dumps(bundle.to_json())), folder) == bundle


def test_a_manifest_is_written_as_it_was_read(folder, tmp_path):
    (tmp_path / "out").mkdir()
    Bundle.load(folder).write_manifest(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "glance.json").read_text())
    assert written == json.loads((folder / "glance.json").read_text())


def test_a_wrong_contract_is_not_written(folder, tmp_path):
    bundle = Bundle.load(folder)
    object.__setattr__(bundle, "rank", 0)
    with pytest.raises(ValueError, match="glance.json: rank must be at least 1, got 0"):
        bundle.write_manifest(tmp_path)
    assert not (tmp_path / "glance.json").exists()


WRONG = {  # the key and its value, and what is said
    "a text for a list": ({"u": "1"}, "u must be a list, got '1'"),
    "a level of 0": ({"u": [1.0, 0.0]}, "u[1] must be above 0, got 0.0"),
    "a level above 1": ({"u": [1.5, 0.5]}, "u[0] must be at most 1, got 1.5"),
    "true for a number": ({"height": True}, "height must be a whole number, got True"),
    "a half for a whole number": ({"rank": 2.5}, "rank must be a whole number, got 2.5"),
    "a rank of 0": ({"rank": 0}, "rank must be at least 1, got 0"),
    "no digest": ({"base_digest": "abc"}, "base_digest must match ^sha256:[0-9a-f]{64}$, got 'abc'"),
    "another dtype": ({"dtype": "fp8"}, "dtype must be one of fp32, bf16, got 'fp8'"),
    "another strength": ({"scale": 0.5}, "scale must be 1, got 0.5"),
    "no licence": ({"license": ""}, "license must have 1 or more letters, got ''"),
    "an unknown key": ({"colour": "red"}, "the key colour is unknown in format 3"),
    "a guidance without its keys": (
        {"guidance": {"guidance_scale": 1}},
        "the key guidance.teacher_true_cfg_scale is missing",
    ),
    "a retention of one number": ({"retention": 1.0}, "retention must be a mapping, got 1.0"),
    "a retention below 0": (
        {"retention": {**Retention.of(METRICS).__dict__, "low": -0.1}},
        "retention.low must be at least 0, got -0.1",
    ),
    "a handoff that is none": ({"handoffs": [5]}, "handoffs[0] must be a mapping, got 5"),
    "a LoRA without a digest": (
        {"loras": [{"file": "a.safetensors", "weight": 1.0}]},
        "the key loras[0].sha256 is missing",
    ),
    "a digest that is a number": (
        {"loras": [{"file": "a.safetensors", "weight": 1.0, "sha256": 5}]},
        "loras[0].sha256 must be a text or null, got 5",
    ),
    "a LoRA outside of its folder": (
        {"loras": [{"file": "../a.safetensors", "weight": 1.0, "sha256": None}]},
        "teacher.loras must hold FILE.safetensors",
    ),
    "a long value": ({"u": 50 * "x"}, f"u must be a list, got '{50 * 'x'}'"),
    "a longer value": ({"u": 99 * "x"}, f"u must be a list, got '{79 * 'x'}..."),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_is_one_sentence_with_its_key(folder, content, case):
    changes, message = WRONG[case]
    (folder / "glance.json").write_text(json.dumps(content | changes))
    with pytest.raises(ValueError, match=re.escape(f"glance.json: {message}")) as refusal:
        Bundle.load(folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_refused(folder, number):
    text = (folder / "glance.json").read_text().replace('"guidance_scale": 3.5', f'"guidance_scale": {number}')
    (folder / "glance.json").write_text(text)
    with pytest.raises(ValueError, match="glance.json: every number must be finite, got NaN or infinity"):
        Bundle.load(folder)


@pytest.mark.parametrize("key", [key for key in schemas.schema()["required"] if key != "format"])
def test_a_missing_key_is_named(folder, content, key):
    del content[key]
    (folder / "glance.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"glance.json: the key {key} is missing"):
        Bundle.load(folder)


def test_the_whole_value_may_be_wrong():
    with pytest.raises(ValueError, match=r"it: the content must be a mapping, got \[\]"):
        schemas.check([], "it")


def test_a_measured_retention_goes_into_the_contract(folder, content):
    measured = Retention.of(METRICS)
    assert measured == Retention(
        value=1.004, low=0.97, high=1.03, score="scenes", prompts=504, student_forwards=8, teacher_forwards=100
    )
    (folder / "glance.json").write_text(json.dumps(content | {"retention": measured.__dict__}))
    assert Bundle.load(folder).retention == measured
    assert Bundle.load(folder).to_json()["retention"]["value"] == 1.004


def test_images_without_a_score_have_no_retention_and_no_metrics_are_refused():
    unscored = {"student": {"nfe": 8, "retention": None}, "teacher": {"nfe": 100}}
    assert Retention.of({**METRICS, "arms": unscored}) is None
    with pytest.raises(ValueError, match="metrics.json must hold the retention of the arm student, with 'arms'"):
        Retention.of({})


def test_the_shipped_metrics_hold_a_retention():
    metrics = json.loads((ROOT / "artifacts" / "evaluation" / "metrics.json").read_text())
    found = Retention.of(metrics)
    assert found.low <= found.value <= found.high and found.prompts == metrics["prompts"]
    assert found.student_forwards < found.teacher_forwards
