"""What `check` refuses: every name, file and pair of values of params.yaml, in the words of the stage that would."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from ruamel.yaml import YAML
from safetensors.torch import save_file

from pipeline import adapters, backbones, checking, diagnosis, families, objectives, partition
from pipeline.faults import Faults
from pipeline.objectives import OBJECTIVES
from pipeline.partition import RULES
from pipeline.training.rivals import RIVALS
from stages import check
from tests.bad_bases import BASES, spoil
from tests.test_params import SHIPPED
from tests.test_rival_params import LIGHTNING
from tests.tiny import make_tiny_flux, make_tiny_qwen_image, make_tiny_z_image


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return make_tiny_flux(tmp_path_factory.mktemp("teacher") / "teacher")


@pytest.fixture
def here(tmp_path, monkeypatch, teacher):
    """A project's folder with the shipped parameters and a tiny teacher."""
    shutil.copy(SHIPPED, tmp_path)
    shutil.copytree(teacher, tmp_path / "artifacts" / "teacher")
    for folder in ("loras", "prompts", "rivals"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def change(**values):
    """Sets parameters, named section__key."""
    content = YAML().load(SHIPPED)
    for name, value in values.items():
        section, key = name.split("__")
        content[section][key] = value
    with open("params.yaml", "w") as file:
        YAML().dump(content, file)


def faults(**values):
    """What is wrong with params.yaml after a change."""
    change(**values)
    try:
        checking.load()
    except Faults as error:
        return list(error.sentences)
    return []


def test_the_shipped_parameters_pass(here):
    assert faults() == []
    assert checking.load().partition.rule == "snr"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"partition__rule": "snrr"}, f"partition.rule must be one of {', '.join(RULES)}, got 'snrr'; did you"),
        ({"partition__threshold_u": 0.01}, "partition.threshold_u must be at least the last level 0.04, got 0.01"),
        ({"partition__slow_steps": 6}, "partition.slow_steps must fit into the 5 recorded steps that rule snr gives"),
        ({"partition__fast_steps": 40}, "partition.slow_steps + fast_steps must be at most the 25 recorded steps, got"),
        ({"trajectories__steps": 3}, "trajectories.steps must divide teacher.steps = 50, got 3"),
        ({"training__objective": "Flow"}, f"training.objective must be one of {', '.join(OBJECTIVES)}, got 'Flow'"),
        ({"training__targets": "al"}, "training.targets must be one of attention, all for flux, got 'al'; did you"),
        (
            {"train_controls__arms": ["singel"]},
            f"train_controls.arms must be among {', '.join(RIVALS)}, got 'singel'; did",
        ),
        ({"train_controls__arms": [""]}, f"train_controls.arms must be among {', '.join(RIVALS)}, got ''"),
        ({"evaluation__swaps": ["x"]}, "evaluation.swaps must be among slow_only, fast_only, swapped, got 'x'"),
        ({"evaluation__prompts": 10**6}, "evaluation.prompts must be between 1 and "),
        ({"trajectories__prompts": 10**6}, "trajectories.prompts must be between 1 and "),
        ({"teacher__height": 72}, "teacher.height must be a positive multiple of 16 pixels, got 72; the nearest is 64"),
        ({"teacher__width": 60}, "teacher.width must be a positive multiple of 16 pixels, got 60; the nearest is 64"),
        ({"teacher__path": "artifacts/techer"}, "teacher: artifacts/techer is no folder; did you mean artifacts/teac"),
        ({"teacher__path": "x", "teacher__hub": "a/b@c"}, "teacher: x is no folder; `glance fetch` gets a/b@c"),
        ({"teacher__loras": ["own.safetensors"]}, "the LoRA loras/own.safetensors is missing: copy it to"),
        ({"runtime__device": "cuda:99"}, "runtime.device or --device must be one of auto, cpu"),
        ({"runtime__device": "cuda:007"}, "runtime.device must be auto, cpu or cuda, got 'cuda:007'"),
        ({"student__true_cfg_scale": "3"}, "student.true_cfg_scale must be a number, got '3'"),
    ],
)
def test_one_wrong_value_is_one_sentence(here, values, sentence):
    (found,) = faults(**values)
    assert found.startswith(sentence)


@pytest.mark.parametrize("section", ["trajectories", "anchors", "evaluation"])
def test_prompt_files_are_read(here, section):
    (here / "prompts" / "three.txt").write_text("a\nb\nc\n")
    (here / "prompts" / "empty.txt").write_text("\n")
    (here / "prompts" / "latin.txt").write_bytes(b"caf\xe9\n")

    def refusal(file, prompts=3):
        return faults(**{f"{section}__prompts_file": file, f"{section}__prompts": prompts})

    assert refusal("prompts/three.txt") == []
    (found,) = refusal("prompts/three.txt", 4)
    assert found == f"{section}.prompts must be at most 3 with prompts/three.txt, got 4"
    (found,) = refusal("prompts/trhee.txt")
    assert found.startswith(f"{section}.prompts_file must be a text file, got prompts/trhee.txt")
    (found,) = refusal("prompts/empty.txt")
    assert found == f"{section}.prompts_file must hold a prompt a line, and prompts/empty.txt is empty"
    (found,) = refusal("prompts/latin.txt")
    assert found.startswith(f"{section}.prompts_file must be UTF-8 text, and ") and "prompts/latin.txt is not" in found


def test_the_file_of_no_anchors_is_not_looked_for(here):
    assert faults(anchors__prompts=0, anchors__prompts_file="prompts/none.txt") == []


def test_random_anchors_need_a_tokenizer_with_words(here):
    assert faults(anchors__prompts=4) == []
    file = here / "artifacts" / "teacher" / "tokenizer_2" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"] = [[piece.strip("▁") or piece, score] for piece, score in content["model"]["vocab"]]
    file.write_text(json.dumps(content))
    assert faults(anchors__prompts=4) == [
        "anchors.prompts_file must name a text file, since the teacher's tokenizer has no whole words"
    ]
    file.write_text("{}")
    (found,) = faults(anchors__prompts=4)
    assert found.startswith("teacher: artifacts/teacher/tokenizer_2 cannot be loaded: ")


@pytest.mark.parametrize("kind", BASES)
def test_a_teacher_that_cannot_be_followed_is_refused_once(here, kind):
    sentence = spoil(here, kind)
    with pytest.raises(Faults) as refusal:
        checking.load()
    assert len(refusal.value.sentences) == 1 and sentence in refusal.value.sentences[0]


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("vae", "No such file or directory: artifacts/teacher/vae/config.json"),
        ("text_encoder_2", "teacher: artifacts/teacher/text_encoder_2 does not exist"),
        ("vae/diffusion_pytorch_model.safetensors", "teacher: artifacts/teacher/vae holds no weights"),
    ],
)
def test_a_part_that_only_the_evaluation_needs_is_missed(here, missing, sentence):
    path = here / "artifacts" / "teacher" / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert faults() == [sentence]


def test_loras_are_read_and_held_against_the_transformer(here):
    module = "transformer.transformer_blocks.0.attn.to_q"
    fitting = {f"{module}.lora_A.weight": torch.zeros(2, 32), f"{module}.lora_B.weight": torch.zeros(32, 2)}
    save_file(fitting, here / "loras" / "own.safetensors")
    save_file({**fitting, f"{module}.lora_A.weight": torch.zeros(2, 64)}, here / "loras" / "foreign.safetensors")
    (here / "loras" / "page.safetensors").write_text("<html>")
    assert faults(teacher__loras=["own.safetensors:0.5"]) == []
    found = faults(teacher__loras=["foreign.safetensors", "page.safetensors", "onw.safetensors"])
    assert len(found) == 3
    assert found[0].startswith("loras/foreign.safetensors was trained for another base: transformer.transformer_blocks")
    assert found[1].startswith("loras/page.safetensors is no safetensors file")
    assert found[2].endswith("; did you mean loras/own.safetensors?")


def test_rivals_are_read_and_held_against_the_transformer(here):
    module = "transformer_blocks.0.attn.to_q"
    fitting = {f"{module}.lora_down.weight": torch.zeros(2, 32), f"{module}.lora_up.weight": torch.zeros(32, 2)}
    save_file(fitting, here / "rivals" / "own.safetensors")
    save_file({**fitting, f"{module}.lora_down.weight": torch.zeros(2, 64)}, here / "rivals" / "foreign.safetensors")
    names = {"own": "own", "foreign": "foreign", "typo": "onw", "student": "own"}
    entries = {name: LIGHTNING | {"weights": f"{file}.safetensors"} for name, file in names.items()}
    assert rival_faults({"own": entries["own"], "pi_flow": {"images": "not/looked/up"}}) == []
    assert rival_faults(entries) == [
        "rivals must have names that no other arm has, got student",
        f"rivals/foreign.safetensors was trained for another base: {module} must be (32, 32) as in the transformer of"
        " artifacts/teacher, got (32, 64)",
        "the LoRA rivals/onw.safetensors is missing: copy it to rivals/onw.safetensors; a hub's file is written"
        " owner/name@revision/FILE; did you mean rivals/own.safetensors?",
    ]
    other = {"foreign": entries["foreign"] | {"base": "some/other"}}
    assert rival_faults(other, teacher__hub="own/base@main") == [], "an entry for another base is not read"
    wrong = rival_faults({"own": LIGHTNING | {"steps": 0}}, partition__slow_steps=0)
    assert [sentence.split()[0] for sentence in wrong] == ["partition.slow_steps", "rivals.own.steps"]


def rival_faults(entries, **values):
    """What is wrong with params.yaml once it has these rivals."""
    change(**values)
    content = YAML().load(open("params.yaml"))
    content["rivals"] = entries
    with open("params.yaml", "w") as file:
        YAML().dump(content, file)
    try:
        checking.load()
    except Faults as error:
        return list(error.sentences)
    return []


@pytest.mark.parametrize("make", [make_tiny_qwen_image, make_tiny_z_image])
def test_other_families_are_looked_up_too(here, make):
    make(here / "artifacts" / "other")
    name = json.loads((here / "artifacts/other/model_index.json").read_text())["_class_name"]
    family = families.CLASSES[name]
    other = {"teacher__path": "artifacts/other", "teacher__family": family}
    assert faults(**other, anchors__prompts=2) == []
    assert faults(teacher__path="artifacts/other") == [
        f"teacher.family must be {family} for artifacts/other, got 'flux'"
    ]
    (found,) = faults(**other, training__targets="mlp")
    assert found.startswith("training.targets must be one of attention, all for " + family)


def test_the_last_step_of_a_stretched_schedule_is_looked_up(here):
    make_tiny_qwen_image(here / "artifacts" / "other")
    (found,) = faults(teacher__path="artifacts/other", teacher__family="qwen_image", partition__fast_steps=1)
    assert found == "partition.fast_steps must be at least 2 for a schedule with a terminal stretch, got 1"


def test_all_that_is_wrong_is_said_at_once_and_nothing_twice(here):
    found = faults(
        partition__rule="best",
        partition__slow_steps="3",
        training__objective="trajectroy",
        training__targets="some",
        train_controls__arms=["single", "twin", "dual"],
        teacher__path="nowhere",
        evaluation__swaps=["swaped"],
        evaluation__prompts_file="none.txt",
        runtime__offload="yes",
    )
    assert [sentence.split(" must ")[0] for sentence in found] == [
        "partition.slow_steps",
        "runtime.offload",
        "teacher: nowhere is no folder",
        "partition.rule",
        "training.objective",
        "train_controls.arms",
        "train_controls.arms",
        "evaluation.swaps",
        "evaluation.prompts_file",
    ]


def test_the_stage_says_a_line_per_fault_and_writes_nothing(here):
    change(partition__rule="best", training__objective="magic")
    result = CliRunner().invoke(check.main)
    assert result.exit_code == 1 and not (here / "artifacts" / "check.json").exists()
    assert result.output.splitlines() == [
        f"Error: check: partition.rule must be one of {', '.join(RULES)}, got 'best'",
        f"Error: check: training.objective must be one of {', '.join(OBJECTIVES)}, got 'magic'",
    ]
    (here / "params.yaml").write_text("teacher: {}\nteacher: {}\n")
    result = CliRunner().invoke(check.main)
    assert result.exit_code == 1 and result.output.count("\n") == 1
    assert 'params.yaml is not valid YAML: found duplicate key "teacher"' in result.output


def test_what_the_stage_writes_does_not_depend_on_the_parameters(here):
    written = []
    for rule in ("snr", "uniform"):
        change(partition__rule=rule)
        assert CliRunner().invoke(check.main).exit_code == 0
        written.append((here / "artifacts" / "check.json").read_bytes())
    assert written[0] == written[1]


def test_doctor_says_the_same(here):
    change(partition__rule="best", training__objective="magic")
    finding = diagnosis.parameters()
    assert not finding.ok and finding.text.splitlines() == [
        f"partition.rule must be one of {', '.join(RULES)}, got 'best'",
        f"     training.objective must be one of {', '.join(OBJECTIVES)}, got 'magic'",
    ]


def test_every_known_name_passes(here):
    for rule in RULES:
        partition.check(rule)
    for objective in OBJECTIVES:
        objectives.check("training.objective", objective)
    backbone = backbones.load(here / "artifacts" / "teacher", "cpu", parts=())
    for targets in backbone.lora_targets:
        adapters.check_targets(targets, backbone)
