"""What every stage does around its one library call: say what is wrong in a sentence, and leave with the right code."""

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline import cli, diagnosis
from pipeline.console import sentence
from stages import stage_command

ROOT = Path(__file__).parent.parent

STAGE = """
import time
from stages import stage_command
{imports}

@stage_command("probe")
def main(params):
    {body}

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with the real package around one stage, `probe`."""
    (tmp_path / "stages").mkdir()
    shutil.copy(ROOT / "stages" / "__init__.py", tmp_path / "stages")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "pipeline").symlink_to(ROOT / "pipeline")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def start(project, body, imports="", **options):
    (project / "stages" / "probe.py").write_text(STAGE.format(body=body, imports=imports))
    return subprocess.Popen(
        [sys.executable, "-m", "stages.probe"], cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        **options,
    )  # fmt: skip


def small_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, 64 * 1024))


def test_a_stage_gets_the_parameters(project):
    process = start(project, "print(params.partition.rule, params.teacher.steps)")
    assert process.communicate()[0].split() == ["snr", "50"] and process.returncode == 0


@pytest.mark.parametrize("where", ["body", "imports"])
def test_ctrl_c_exits_130_without_a_traceback(project, where):
    pause = "print('ready', flush=True); time.sleep(60)"
    process = start(project, **({"body": "pass"} | {where: pause}))
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert error == "interrupted: nothing is recorded, the next `dvc repro` goes on from here\n"


def test_ctrl_c_leaves_nothing_half_written(project):
    body = "\n    ".join(
        [
            "from pipeline import artifacts",
            "with artifacts.atomic_dir('artifacts/probe') as folder:",
            "    (folder / 'half').touch(); print('ready', flush=True); time.sleep(60)",
        ]
    )
    process = start(project, body)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130 and os.listdir(project / "artifacts") == []


def test_a_full_disk_gives_one_sentence_and_leaves_nothing(project):
    imports = "from pipeline import artifacts"
    body = "artifacts.write_json('artifacts/probe/big.json', list(range(100_000)))"
    process = start(project, body, imports, preexec_fn=small_files)
    _, error = process.communicate()
    assert process.returncode == 1 and error.count("\n") == 1
    assert (
        error.startswith("Error: probe: no space left to write at artifacts/probe/big.json")
        and "run `dvc repro` again" in error
    )
    assert os.listdir(project / "artifacts" / "probe") == []


def test_tensors_on_a_full_disk_give_the_same_sentence(project):
    imports = "import torch\nfrom pipeline import artifacts"
    body = "artifacts.save_safetensors('artifacts/probe/x.safetensors', {'x': torch.zeros(100_000)})"
    process = start(project, body, imports, preexec_fn=small_files)
    _, error = process.communicate()
    assert process.returncode == 1 and error.count("\n") == 1
    assert "no space left to write at artifacts/probe/x.safetensors" in error
    assert os.listdir(project / "artifacts" / "probe") == []


def test_memory_that_runs_out_gives_one_sentence_and_leaves_nothing(project):
    imports = "import torch\nfrom pipeline import artifacts"
    body = "\n    ".join(
        [
            "with artifacts.atomic_dir('artifacts/probe') as folder:",
            "    (folder / 'half').touch()",
            "    torch.zeros(10**15)",
        ]
    )
    process = start(project, body, imports)
    _, error = process.communicate()
    assert process.returncode == 1
    assert error == "Error: probe: out of memory, main memory is too small: use a machine with more memory\n"
    assert os.listdir(project / "artifacts") == []


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            lambda torch: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
            "out of memory, the GPU is too small: set runtime.gradient_checkpointing to true; if that is not enough, "
            "lower training.batch, then set teacher.quantization to int8, then lower teacher.height and width, then "
            "use a larger GPU",
        ),
        (lambda torch: MemoryError(), "out of memory, main memory is too small: set runtime.gradient_checkpointing"),
        (lambda torch: RuntimeError("CUDA error: out of memory"), "out of memory, the GPU is too small: set runtime."),
    ],
)
def test_a_stage_without_memory_names_the_mends_cheapest_first(monkeypatch, error, sentence):
    monkeypatch.chdir(ROOT)

    @stage_command("train_slow")
    def main(params):
        """Train."""
        import torch

        raise error(torch)

    result = CliRunner().invoke(main)
    assert result.exit_code == 1 and result.output.startswith(f"Error: train_slow: {sentence}"), result.output
    assert result.output.count("\n") == 1
    assert isinstance(CliRunner().invoke(main, ["--traceback"]).exception, RuntimeError | MemoryError)


def test_another_runtime_error_is_not_taken_for_a_lack_of_memory(monkeypatch):
    monkeypatch.chdir(ROOT)

    @stage_command("probe")
    def main(params):
        """Probe."""
        raise RuntimeError("shapes do not match")

    assert str(CliRunner().invoke(main).exception) == "shapes do not match"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a.b must be\n  at least 1, got 0"), "a.b must be at least 1, got 0"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.txt"), "No such file or directory: x.txt"),
        (FileNotFoundError("x holds no file"), "x holds no file"),
        (
            OSError(errno.ENOSPC, "No space left on device", "x"),
            "no space left to write at x (No space left on device); free some and run `dvc repro` again",
        ),
    ],
)
def test_errors_become_one_sentence(error, text):
    assert sentence(error) == text


@pytest.fixture
def failing(monkeypatch):
    monkeypatch.chdir(ROOT)

    @stage_command("probe")
    def main(params):
        """Probe."""
        raise ValueError("bad value")

    return main


def test_a_refused_value_is_an_exit_code_of_1(failing):
    result = CliRunner().invoke(failing)
    assert result.exit_code == 1 and result.output == "Error: probe: bad value\n"


def test_the_traceback_can_be_asked_for(failing):
    result = CliRunner().invoke(failing, ["--traceback"])
    assert isinstance(result.exception, ValueError)


@pytest.fixture
def clone(tmp_path):
    """Another checkout of this project's code."""
    for package in ("pipeline", "stages"):
        shutil.copytree(ROOT / package, tmp_path / "clone" / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "clone"


SENTENCE = f"this is the code of {ROOT}, while {{}} has its own"


@pytest.mark.parametrize(("options", "safe"), [((), "1"), (("-P",), "")])
def test_a_stage_refuses_to_be_the_code_of_another_checkout(clone, options, safe):
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": safe}
    command = [sys.executable, *options, "-m", "stages.compute_partition"]
    done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    fix = "unset PYTHONSAFEPATH, and run Python without -P and -I"
    assert done.stderr == f"Error: compute_partition: {SENTENCE.format(clone)}: {fix}\n"


def test_a_stage_runs_the_working_directorys_code_whatever_is_installed(clone):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "stages.compute_partition"]
    done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True)
    assert done.stderr == "Error: compute_partition: params.yaml is missing: run this in the root of the project\n"


@pytest.mark.parametrize("command", [["preset", "tiny"], ["evaluate", "x"], ["register"], ["promote"], ["ablations"]])
def test_commands_that_read_a_checkouts_parameters_refuse_to_be_the_code_of_another(clone, monkeypatch, command):
    monkeypatch.chdir(clone)
    done = CliRunner().invoke(cli.main, command)
    assert done.exit_code == 1
    assert done.stderr == f"Error: {SENTENCE.format(clone)}: run `python -m pipeline.cli` here instead of `glance`\n"


def test_other_commands_run_in_any_checkout(clone, monkeypatch):
    monkeypatch.chdir(clone)
    for command in (["generate", "a star"], ["pull", "models:/a/b/c"], ["assemble", "x", "--base", "b", "--out", "o"]):
        done = CliRunner().invoke(cli.main, command)
        assert done.exit_code == 1 and "this is the code of" not in done.output
    found = diagnosis.code()
    assert not found.ok and found.text == SENTENCE.format(clone) and "python -m pipeline.cli doctor" in found.fix
    monkeypatch.chdir(ROOT)
    assert diagnosis.code().ok


def test_linked_folders_of_the_teacher_that_dvc_does_not_watch_are_pointed_out(project):
    teacher = project / "artifacts" / "teacher"
    teacher.mkdir(parents=True)
    (project / "shared").mkdir()
    message = "teacher.path: DVC sees no change in the linked folders of artifacts/teacher: text_encoder_2"
    assert message not in start(project, "pass").communicate()[1]
    (teacher / "text_encoder_2").symlink_to("../../shared")
    assert message in start(project, "pass").communicate()[1]


@pytest.mark.parametrize(("file", "warned"), [("prompts/mine.txt", False), ("mine.txt", True)])
def test_a_prompts_file_that_dvc_does_not_watch_is_pointed_out(project, file, warned):
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("prompts_file: null", f"prompts_file: {file}", 1))
    _, error = start(project, "pass").communicate()
    message = f"trajectories.prompts_file: DVC sees changes of files in prompts/ only, not of {file}"
    assert (message in error) == warned


def test_the_number_of_threads_is_set(project):
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(re.sub(r"threads: \d+", "threads: 3", text))
    process = start(project, "print(torch.get_num_threads())", "import torch")
    assert process.communicate()[0].strip() == "3"


@pytest.mark.parametrize(
    ("content", "said"), [("a caf\u00e9\n", ""), ("a star\n\0\n", "line 2 of prompts/caf\u00e9.txt")]
)
def test_prompts_are_read_in_every_locale(project, content, said):
    text = (project / "params.yaml").read_text(encoding="utf-8")
    text = text.replace("prompts_file: null", "prompts_file: prompts/caf\u00e9.txt", 1)
    (project / "params.yaml").write_text(text, encoding="utf-8")
    (project / "prompts").mkdir()
    (project / "prompts" / "caf\u00e9.txt").write_text(content, encoding="utf-8")
    body = "click.echo(load_prompts(params.trajectories.prompts_file, 1, 'train', 0, 'trajectories')[0])"
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    process = start(project, body, "import click\nfrom pipeline.prompts import load_prompts", env=env)
    printed, error = process.communicate()
    assert said in error and "Traceback" not in error and process.returncode == bool(said)
    assert said or (printed, error) == (content, "")
