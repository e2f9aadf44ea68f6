"""Real `dvc repro` in a temporary clone: what runs, what does not, and what an interruption leaves."""

import json
import os
import re
import signal
import time

import pytest

from pipeline import artifacts
from pipeline.objectives import OBJECTIVES
from pipeline.partition import RULES
from pipeline.training.rivals import RIVALS
from tests.growth import GROWTH

STAGES = (
    "check",
    "cache_trajectories",
    "compute_partition",
    "cache_anchors",
    "train_slow",
    "train_fast",
    "train_controls",
    "export_adapter",
    "generate_images",
    "evaluate",
    "time_arms",
    "report",
    "register",
)
CLOCKED = ("time_arms", "report")  # their bytes depend on a clock
UNDER_WAY = {  # what shows that a stage is in the middle of its work; `check` has nothing to lose
    "cache_trajectories": ".glance/checkpoints/cache_trajectories/*/shard-00000.safetensors",
    "compute_partition": "artifacts/.partition.partial",
    "cache_anchors": ".glance/checkpoints/cache_anchors/*/shard-00000.safetensors",
    "train_slow": ".glance/checkpoints/train_slow/*/checkpoint.pt",
    "train_fast": ".glance/checkpoints/train_fast/*/checkpoint.pt",
    "train_controls": ".glance/checkpoints/train_controls/*/checkpoint.pt",
    "export_adapter": "artifacts/.bundle.partial",
    "generate_images": ".glance/cache/evaluation/*/*.zip",
    "evaluate": "artifacts/evaluation/arms.csv",
    "time_arms": "artifacts/timing/latency.json",
    "report": "artifacts/evaluation/report.html",
    "register": ".glance/mlflow.db",
}
PATIENCE_S = 600


def ran(output):
    """The stages that DVC ran, in order."""
    return re.findall(r"Running stage '(\w+)'", output)


def restored(output):
    """The stages that DVC took from the run cache."""
    return re.findall(r"Stage '(\w+)' is cached - skipping run", output)


def interrupt(project, stage, number):
    """Runs `dvc repro` until a stage is in the middle of its work and signals all its processes; (code, output)."""
    process = project.start("dvc", "repro")
    end = time.monotonic() + PATIENCE_S
    while not any(project.folder.glob(UNDER_WAY[stage])):
        assert process.poll() is None, f"`dvc repro` ended before {stage} was under way\n{process.stdout.read()}"
        assert time.monotonic() < end, f"{stage} did not get under way"
        time.sleep(0.005)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, output


def test_one_command_runs_every_stage_in_order(project):
    assert sorted(ran(project.first_output)) == sorted(STAGES)
    assert ran(project.first_output)[:2] == ["check", "cache_trajectories"]
    assert ran(project.first_output)[-1] == "register"
    assert set(project.lock()) == set(STAGES)
    assert (project.folder / "artifacts" / "evaluation" / "report.html").is_file()
    assert set(json.loads((project.folder / "artifacts" / "evaluation" / "metrics.json").read_text())["arms"]) == {
        "teacher", "base_guided", "base_unguided", "base_guided_equal_cost", "base_ab2", "student",
        "slow_only", "fast_only", "single", "swapped", "official",
    }  # fmt: skip


def test_checkpoints_are_gone_after_success(project):
    assert [path for path in (project.folder / ".glance" / "checkpoints").rglob("*") if path.is_file()] == []


def test_nothing_changed_means_nothing_runs(project):
    output = project.succeed("dvc", "repro")
    assert ran(output) == [] and "up to date" in output
    assert project.succeed("git", "status", "--porcelain") == ""


def test_a_runtime_knob_runs_nothing(project):
    project.change("runtime.threads", 1)
    try:
        assert ran(project.succeed("dvc", "repro")) == []
    finally:
        project.succeed("git", "checkout", "--quiet", "params.yaml")


def test_a_changed_rate_reruns_what_it_must_and_going_back_is_free(project):
    before = project.lock()
    bundle = artifacts.folder_digest(project.folder / "artifacts" / "bundle")
    project.change("train_fast.learning_rate", 3e-3)
    output = project.succeed("dvc", "repro")
    assert set(ran(output)) == {"check", "train_fast", "train_controls", "export_adapter", *STAGES[-5:]}
    changed = project.lock()
    assert changed["train_slow"] == before["train_slow"]
    assert changed["train_fast"]["outs"] != before["train_fast"]["outs"]
    assert artifacts.folder_digest(project.folder / "artifacts" / "bundle") != bundle

    project.succeed("git", "checkout", "--quiet", "params.yaml")
    output = project.succeed("dvc", "repro")
    assert set(restored(output)) == {"check", "train_fast", "train_controls", "export_adapter", *STAGES[-5:-1]}
    assert set(ran(output)) <= {"register"}, "a stage without outputs is the only one that may run"
    assert artifacts.folder_digest(project.folder / "artifacts" / "bundle") == bundle
    assert {name: stage.get("outs") for name, stage in project.lock().items()} == {
        name: stage.get("outs") for name, stage in before.items()
    }


def stale(project):
    """The stages that DVC would run again for a change of their own dependencies, by `dvc status`."""
    return set(json.loads(project.succeed("dvc", "status", "--json")))


NOTHING_STALE = {  # what can change no stage's bytes
    "A scorer of the official benchmarks",
    "A format",
    "A sign of full memory",
    "A measurement of the project itself",
}


@pytest.mark.parametrize("kind", GROWTH)
def test_growth_leaves_the_recording_fresh(project, kind):
    try:
        GROWTH[kind].add(project.folder)
        found = stale(project)
        assert ("cache_trajectories" in found) == (kind == "A layout of LoRA files"), "a teacher may have LoRAs"
        if kind in NOTHING_STALE:
            assert found == set()
    finally:
        project.succeed("git", "reset", "--quiet", "--hard")
        project.succeed("git", "clean", "--quiet", "--force", "pipeline", "measurements")


def test_another_name_makes_stale_what_it_changes_and_not_the_recording(project):
    before = project.lock()
    project.change("partition.rule", "uniform")
    try:
        assert stale(project) == {"check", "compute_partition", "report"}  # whose report shows the parameters
        would_run = ran(project.succeed("dvc", "repro", "--dry"))
        assert would_run[:2] == ["check", "compute_partition"] and "cache_trajectories" not in would_run
        output = project.succeed("dvc", "repro", "compute_partition")
        assert ran(output) == ["check", "compute_partition"]
        assert project.lock()["check"]["outs"] == before["check"]["outs"]
        readers = STAGES[STAGES.index("cache_anchors") : STAGES.index("generate_images")]
        assert stale(project) == {*readers, "report"}
    finally:
        project.succeed("git", "reset", "--quiet", "--hard")
        project.succeed("dvc", "checkout", "--force", "--quiet")


def test_code_that_only_the_check_runs_does_not_make_the_recording_stale(project):
    module = project.folder / "pipeline" / "checking.py"
    module.write_text(module.read_text() + "\n# another line\n")
    try:
        assert stale(project) == {"check"}
        assert ran(project.succeed("dvc", "repro")) == ["check"]
    finally:
        project.succeed("git", "reset", "--quiet", "--hard")


def test_misspelt_names_fail_within_seconds_before_the_recording_and_lose_nothing(project):
    before, files = project.lock(), outputs(project)
    for key, value in (
        ("partition.rule", "snrr"),
        ("training.objective", "trajectroy"),
        ("training.targets", "al"),
        ("train_controls.arms", ["singel"]),
        ("evaluation.swaps", ["x"]),
        ("trajectories.seed", 5),  # the recording is stale as well
    ):
        project.change(key, value)
    try:
        result = project.run("dvc", "repro")
        assert result.returncode != 0 and ran(result.stdout) == ["check"] and "Traceback" not in result.stdout
        assert re.findall(r"^Error: check: (.*)$", result.stdout, flags=re.MULTILINE) == [
            f"partition.rule must be one of {', '.join(RULES)}, got 'snrr'; did you mean snr?",
            f"training.objective must be one of {', '.join(OBJECTIVES)}, got 'trajectroy'; did you mean trajectory?",
            "training.targets must be one of attention, all for flux, got 'al'; did you mean all?",
            f"train_controls.arms must be among {', '.join(RIVALS)}, got 'singel'; did you mean single?",
            "evaluation.swaps must be among slow_only, fast_only, swapped, got 'x'",
        ]
        assert project.lock() == before
        assert outputs(project) == {path: digest for path, digest in files.items() if path.name != "check.json"}
    finally:
        project.succeed("git", "checkout", "--quiet", ".")
    output = project.succeed("dvc", "repro")
    assert restored(output) == ["check"] and ran(output) == [], "what is right again costs nothing"
    assert outputs(project) == files


def outputs(project):
    """Every file under artifacts/, with its digest."""
    files = [path for path in (project.folder / "artifacts").rglob("*") if path.is_file()]
    return {path.relative_to(project.folder): artifacts.file_digest(path) for path in files}


def test_an_experiment_elsewhere_imports_the_code_of_its_own_folder(project):
    stage = project.folder / "stages" / "compute_partition.py"
    probe = "import os, pathlib, pipeline\npathlib.Path(os.environ['DVC_ROOT'], 'seen').write_text(pipeline.__file__)\n"
    stage.write_text(stage.read_text().replace("\n@stage_command", f"\n{probe}\n@stage_command"))
    try:
        project.succeed(
            "dvc", "exp", "run", "--temp", "--name", "elsewhere", "-S", "partition.rule=uniform", "compute_partition"
        )
        seen = (project.folder / "seen").read_text()
        assert ".dvc/tmp/exps" in seen and seen.endswith("pipeline/__init__.py")
        assert "elsewhere" in project.succeed("dvc", "exp", "list", "--name-only").split()
        rule = json.loads((project.folder / "artifacts" / "partition" / "partition.json").read_text())["rule"]
        assert rule == "snr", "the main folder keeps its own result"
    finally:
        (project.folder / "seen").unlink(missing_ok=True)
        project.succeed("git", "checkout", "--quiet", ".")


def test_killed_in_every_stage_it_ends_where_an_undisturbed_run_does(project, fresh_project):
    for stage in UNDER_WAY:
        code, _ = interrupt(fresh_project, stage, signal.SIGKILL)
        assert code == -signal.SIGKILL and stage not in fresh_project.lock()
        if stage == "train_fast":
            code, output = interrupt(fresh_project, "train_controls", signal.SIGINT)
            assert "interrupted: nothing is recorded" in output and "Traceback" not in output
            # The stage leaves with 130. A shell that stands between, as dash does, dies of the same Ctrl-C.
            assert re.search(r"exited with (130|-2)\b", output) and code not in (0, -signal.SIGINT)
            assert "train_controls" not in fresh_project.lock(), "an interrupted stage is not recorded"
    output = fresh_project.succeed("dvc", "repro")
    assert ran(output) == ["register"]

    killed, undisturbed = fresh_project.lock(), project.lock()
    for stage in STAGES[:-1]:
        if stage not in CLOCKED:
            assert killed[stage] == undisturbed[stage], f"{stage} gave other bytes after a kill"
    assert not list((fresh_project.folder / "artifacts").glob(".*.partial"))
