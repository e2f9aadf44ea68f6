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

from stages import sentence, stage_command

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
