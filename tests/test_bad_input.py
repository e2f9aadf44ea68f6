"""What a person can get wrong: each stage says so in one sentence, fails, and leaves its outputs as they were."""

import json
import re
import resource
import shutil

import pytest
from safetensors.torch import load_file, save_file

from pipeline import artifacts
from pipeline.objectives import OBJECTIVES
from pipeline.partition import RULES
from pipeline.training.rivals import RIVALS
from tests.bad_bases import BASES, spoil


@pytest.fixture
def broken(project):
    """The small project, to be broken; afterwards everything is as before."""
    yield project
    project.succeed("git", "checkout", "--quiet", ".")
    project.succeed("git", "clean", "--quiet", "-d", "--force", "--exclude", ".glance")
    shutil.rmtree(project.folder / ".glance" / "checkpoints", ignore_errors=True)
    project.succeed("dvc", "checkout", "--force", "--quiet")


def outputs(project):
    """Every file under artifacts/, with its digest."""
    files = [path for path in (project.folder / "artifacts").rglob("*") if path.is_file()]
    return {path.relative_to(project.folder): artifacts.file_digest(path) for path in files}


def refusal(project, stage, **options):
    """The one sentence with which a stage fails."""
    before = outputs(project)
    result = project.run("python", "-m", f"stages.{stage}", **options)
    sentences = re.findall(r"^Error: .*$", result.stdout, flags=re.MULTILINE)
    assert result.returncode == 1 and len(sentences) == 1 and "Traceback" not in result.stdout, result.stdout
    assert result.stdout.rstrip().endswith(sentences[0]), "the sentence comes last"
    assert outputs(project) == before, "a failed stage leaves its outputs as they were"
    return sentences[0].removeprefix(f"Error: {stage}: ")


def small_files():
    """No file may grow beyond 4 KiB: a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


@pytest.mark.parametrize(
    ("stage", "key", "value", "sentence"),
    [
        ("compute_partition", "partition.slow_step", 3, "partition.slow_step is not a parameter; partition has rule"),
        ("train_slow", "training.rank", "many", "training.rank must be an integer, got 'many'"),
        ("evaluate", "evaluation.bootstrap", 3, "evaluation.bootstrap must be at least 100, got 3"),
        ("compute_partition", "partition.rule", "best", f"rule must be one of {', '.join(RULES)}, got 'best'"),
        ("compute_partition", "partition.slow_steps", 2, "partition.slow_steps must fit into the 1 recorded steps"),
        ("train_fast", "training.objective", "magic", f"objective must be one of {', '.join(OBJECTIVES)}, got"),
        ("train_controls", "official.objective", "magic", f"official.objective must be one of {', '.join(OBJECTIVES)}"),
        ("train_controls", "official.targets", "some", "official.targets must be one of attention, all for flux, got"),
        ("train_controls", "train_controls.arms", ["dual"], f"arms must be among {', '.join(RIVALS)}, got 'dual'"),
        ("cache_trajectories", "teacher.path", "nowhere", "nowhere"),
        ("cache_trajectories", "trajectories.prompts_file", "none.txt", "must be a text file, got none.txt"),
        ("generate_images", "evaluation.prompts_file", "none.txt", "got none.txt"),
        ("time_arms", "evaluation.swaps", ["all"], "evaluation.swaps must be among slow_only, fast_only, swapped, got"),
    ],
)
def test_a_wrong_parameter_is_refused_by_its_stage(broken, stage, key, value, sentence):
    broken.change(key, value)
    assert sentence in refusal(broken, stage)


def test_an_empty_prompts_file_is_refused(broken):
    (broken.folder / "prompts" / "empty.txt").write_text("\n \n")
    broken.change("trajectories.prompts_file", "prompts/empty.txt")
    assert "prompts/empty.txt is empty" in refusal(broken, "cache_trajectories")
    broken.change("anchors.prompts_file", "prompts/empty.txt")
    assert "anchors.prompts_file must hold a prompt a line" in refusal(broken, "cache_anchors")


def test_dvc_fails_with_the_sentence_and_records_nothing(broken):
    lock = broken.lock()
    broken.change("train_fast.learning_rate", -1)
    result = broken.run("dvc", "repro")
    assert result.returncode != 0
    assert "Error: check: train_fast.learning_rate must be above 0, got -1" in result.stdout
    assert "Traceback" not in result.stdout and broken.lock() == lock


def replace_shard(project, change):
    """Writes an altered first shard in place of the recorded one."""
    path = project.folder / artifacts.TRAJECTORIES / "shard-00000.safetensors"
    tensors = load_file(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    path.unlink()  # it may be a link into DVC's cache
    save_file(tensors, path)
    return path


def test_a_corrupt_shard_is_named(broken):
    replace_shard(broken, lambda tensors: tensors["states"].add_(1))
    assert "shard-00000.safetensors does not match its digest" in refusal(broken, "train_slow")


def test_a_loss_that_is_not_finite_names_step_phase_and_sigma(broken):
    path = replace_shard(broken, lambda tensors: tensors["states"].fill_(float("nan")))
    index = artifacts.read_json(path.parent / "index.json")
    index["shards"][0]["digest"] = artifacts.file_digest(path)
    (path.parent / "index.json").unlink()
    artifacts.write_json(path.parent / "index.json", index)
    sentence = refusal(broken, "train_fast")
    assert re.search(r"train step \d+", sentence) and "fast" in sentence and re.search(r"sigma 0?\.\d+", sentence)


MEASURERS = ["generate_images", "time_arms"]
LOADERS = ["cache_trajectories", "cache_anchors", "train_slow", "train_fast", "train_controls", *MEASURERS]


@pytest.mark.parametrize("kind", BASES)
def test_a_teacher_that_cannot_be_followed_is_refused_by_every_stage_that_loads_it(broken, kind):
    sentence = spoil(broken.folder, kind)
    for stage in LOADERS:
        if kind == "transformer" and stage in MEASURERS:
            sentence = "artifacts/bundle must belong to the teacher in"  # its digest is another one
        if kind == "pixels" and stage in MEASURERS:
            sentence = "as in artifacts/bundle/glance.json, got 72"  # the bundle has another size
        if kind == "pixels" and stage.startswith("train_"):
            continue  # they train at the size of the recording
        assert sentence in refusal(broken, stage)


@pytest.mark.parametrize(
    ("stage", "key", "value", "fix"),
    [
        ("cache_trajectories", "teacher.height", 32_000_000, "lower trajectories.shard_size; if that is not enough"),
        ("train_slow", "training.batch", 10**14, "set runtime.gradient_checkpointing to true; if that is not enough"),
        ("evaluate", "evaluation.bootstrap", 10**14, "lower evaluation.bootstrap; if that is not enough, lower eval"),
    ],
)
def test_memory_that_runs_out_is_one_sentence_with_the_mend(broken, stage, key, value, fix):
    broken.change(key, value)
    if key == "teacher.height":
        broken.change("teacher.width", value)
        file = broken.folder / "artifacts" / "teacher" / "scheduler" / "scheduler_config.json"
        fixed = json.loads(file.read_text()) | {"use_dynamic_shifting": False}  # a size shifts it beyond any level
        file.write_text(json.dumps(fixed))
    assert refusal(broken, stage).startswith(f"out of memory, main memory is too small: {fix}")


WRITERS = ["cache_trajectories", "compute_partition", "train_slow", "export_adapter", "generate_images", "evaluate"]


@pytest.mark.parametrize("stage", WRITERS)
def test_a_full_disk_is_one_sentence(broken, stage):
    broken.change("evaluation.seed", 31415)  # of no other test: its images are in no cache
    assert "no space left to write" in refusal(broken, stage, preexec_fn=small_files)


def test_a_server_that_is_down_is_one_sentence(broken, monkeypatch):
    monkeypatch.setitem(broken.env, "MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert "no MLflow server answers at http://127.0.0.1:9" in refusal(broken, "register")
