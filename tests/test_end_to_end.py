"""Real `dvc repro` in a temporary clone: what runs, what does not, and what an interruption leaves."""

import json
import os
import re
import signal
import time

from pipeline import artifacts

STAGES = (
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
UNDER_WAY = {  # what shows that a stage is in the middle of its work
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
    assert ran(project.first_output)[0] == "cache_trajectories" and ran(project.first_output)[-1] == "register"
    assert set(project.lock()) == set(STAGES)
    assert (project.folder / "artifacts" / "evaluation" / "report.html").is_file()
    assert set(json.loads((project.folder / "artifacts" / "evaluation" / "metrics.json").read_text())["arms"]) == {
        "teacher", "base_guided", "base_unguided", "base_guided_equal_cost", "student",
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
    assert set(ran(output)) == {"train_fast", "train_controls", "export_adapter", *STAGES[-5:]}
    changed = project.lock()
    assert changed["train_slow"] == before["train_slow"]
    assert changed["train_fast"]["outs"] != before["train_fast"]["outs"]
    assert artifacts.folder_digest(project.folder / "artifacts" / "bundle") != bundle

    project.succeed("git", "checkout", "--quiet", "params.yaml")
    output = project.succeed("dvc", "repro")
    assert set(restored(output)) == {"train_fast", "train_controls", "export_adapter", *STAGES[-5:-1]}
    assert set(ran(output)) <= {"register"}, "a stage without outputs is the only one that may run"
    assert artifacts.folder_digest(project.folder / "artifacts" / "bundle") == bundle
    assert {name: stage.get("outs") for name, stage in project.lock().items()} == {
        name: stage.get("outs") for name, stage in before.items()
    }


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
    for stage in STAGES:
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
