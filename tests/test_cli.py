import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._inductor.exc
from click.testing import CliRunner
from PIL import Image

from pipeline import backbones, cli
from pipeline.artifacts import dvc_root
from pipeline.bundle.generating import generate as reference
from pipeline.bundle.manifest import Bundle, bundle_digest
from pipeline.registry import connection
from tests.published import ROOT, write_bundle, write_evaluation, write_project
from tests.tiny import make_tiny_flux

NAME = "glance-scenes"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny_flux(tmp_path_factory.mktemp("base") / "teacher")


@pytest.fixture
def project(tmp_path, monkeypatch, base):
    """A finished project whose bundle belongs to a tiny teacher, as the working directory."""
    for name in (*connection.ENVIRONMENT, "MLFLOW_TRACKING_URI", "DVC_EXP_NAME"):
        monkeypatch.setenv(name, "")  # so that what connect sets is taken back
        monkeypatch.delenv(name)
    root = write_project(tmp_path / "project")
    write_bundle(root / "artifacts/bundle", base_model="artifacts/teacher", base_digest=backbones.digest(base))
    write_evaluation(root, retention=0.97)
    (root / "artifacts/teacher").symlink_to(base)
    monkeypatch.chdir(root)
    monkeypatch.setenv("DVC_ROOT", str(root))
    return root


@pytest.fixture
def registering(project, database):
    """The same with an empty registry."""
    (project / ".glance").mkdir()
    shutil.copy(database, project / ".glance" / "mlflow.db")
    return project


def glance(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def refused(*arguments):
    """What a command that must fail says: one sentence, no traceback."""
    done = glance(*arguments)
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.output
    line = done.stderr.splitlines()[-1]
    assert done.stderr.count("Error: ") == 1 and "Traceback" not in done.stderr
    assert line == done.stderr.strip() or "generating" in done.stderr, "only a progress bar stands before it"
    return line


def test_help_imports_nothing_heavy():
    program = """
import sys
from click.testing import CliRunner
from pipeline import cli
assert CliRunner().invoke(cli.main, ["--help"]).exit_code == 0
assert CliRunner().invoke(cli.main, ["generate", "--help"]).exit_code == 0
print({"torch", "diffusers", "mlflow", "pandas", "numpy", "matplotlib"} & set(sys.modules))
"""
    assert subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True) == "set()\n"


def test_generate_writes_an_image_per_prompt_from_seeds_that_count_up(project, base):
    (project / "more.txt").write_text("\ntwo stars\n")
    done = glance("generate", "a red star", "--prompts-file", "more.txt", "--seed", 5, "--out", "pictures", "--grid")
    assert done.exit_code == 0, done.output
    files = ["pictures/000-a-red-star.png", "pictures/001-two-stars.png", "pictures/grid.png"]
    assert done.stdout.splitlines() == files
    assert sorted(path.as_posix() for path in Path("pictures").iterdir()) == files
    expected = reference(
        backbones.load(base, "cpu"), Bundle.load("artifacts/bundle"), ["a red star", "two stars"], [5, 6]
    ).numpy()
    for file, image in zip(files, expected, strict=False):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), image)
    np.testing.assert_array_equal(np.asarray(Image.open(files[2])), np.concatenate(expected, axis=1))


def test_generate_writes_one_file(project):
    done = glance("generate", "a red star", "--out", "one.png")
    assert done.exit_code == 0, done.output
    assert Image.open("one.png").size == (64, 64)


def test_generate_takes_a_version_of_the_registry(registering):
    assert glance("register").exit_code == 0
    done = glance("generate", "a red star", "--bundle", f"models:/{NAME}@candidate", "--out", "registry.png")
    assert done.exit_code == 0, done.output
    assert glance("generate", "a red star", "--out", "folder.png").exit_code == 0
    assert Path("registry.png").read_bytes() == Path("folder.png").read_bytes()
    assert len(list((dvc_root() / ".glance/bundles").iterdir())) == 1


def test_generate_refuses_another_base(project, tmp_path_factory):
    other = make_tiny_flux(tmp_path_factory.mktemp("other") / "teacher", seed=1)
    line = refused("generate", "a star", "--teacher", other)
    assert line.startswith(f"Error: artifacts/bundle was made for another model than {other}: sha256:")
    assert not Path("images").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "generate needs at least one prompt, as an argument or in --prompts-file"),
        (["--prompts-file", "empty.txt"], "--prompts-file must hold a prompt a line, and empty.txt is empty"),
        (["--prompts-file", "nowhere.txt"], "--prompts-file must be a text file, got nowhere.txt: No such file or"),
        (["--prompts-file", "artifacts"], "--prompts-file must be a text file, got artifacts: Is a directory"),
        (["a star", "--out", "image.jpg"], "--out must be a folder or a .png file, got image.jpg"),
        (["a star", "--bundle", "nowhere"], "nowhere is no bundle"),
        (
            ["a star", "--bundle", "artifacts/bundle/slow.safetensors"],
            "is a file, and a bundle is a folder: ",
        ),
        (["a star", "--out", "artifacts/bundle"], "--out must lie outside of the bundle "),
        (["a star", "--out", "artifacts/bundle/new/x.png"], "/artifacts/bundle, got artifacts/bundle/new/x.png"),
        (["a star", "--teacher", "nowhere"], "the base model nowhere is not here"),
        (["a star", "--bundle", "models:/a/b/c"], "a version is named models:/name@alias"),
    ],
)
def test_generate_says_what_is_wrong(project, arguments, message):
    Path("empty.txt").write_text("\n \n")
    assert message in refused("generate", *arguments)


def test_generate_in_little_memory_makes_the_same_images(project, monkeypatch):
    loaded, load = [], backbones.load
    monkeypatch.setattr(backbones, "load", lambda *a, **options: loaded.append(options) or load(*a, **options))
    for out, options in (("whole.png", ()), ("small.png", ("--offload", "--batch", 1))):
        assert glance("generate", "a red star", "two stars", "--out", out, *options).exit_code == 0
    assert [options["offload"] for options in loaded] == [False, True]
    images = [np.asarray(Image.open(out)).astype(int) for out in ("whole.png", "small.png")]
    assert np.abs(images[0] - images[1]).max() <= 1


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        (
            (),
            "add --offload; if that is not enough, lower --batch, then add --quantization int8, then use a larger GPU",
        ),
        (("--offload", "--batch", 1, "--quantization", "nf4"), "use a larger GPU"),
    ],
)
def test_generate_without_memory_says_what_to_change(project, monkeypatch, options, fix):
    def fails(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    load = backbones.load
    monkeypatch.setattr(backbones, "load", lambda teacher, *a, **_: load(teacher.path, *a))
    monkeypatch.setattr("pipeline.bundle.generating.generate", fails)
    line = refused("generate", "a star", *options)
    assert line.endswith(f"Error: out of memory, the GPU is too small: {fix}"), line
    assert not Path("images").exists()


def test_a_teacher_for_which_memory_is_too_small_is_not_called_broken(project, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("diffusers.FluxPipeline.from_pretrained", fails)
    assert "out of memory, main memory is too small: lower --batch; if" in refused("generate", "a star")


def test_generate_says_when_it_cannot_compile(project, monkeypatch):
    def fails(*_, **__):
        raise torch._inductor.exc.InvalidCxxCompiler

    monkeypatch.setattr("pipeline.bundle.generating.generate", fails)
    assert "--compile needs a C++ compiler" in refused("generate", "a star", "--compile")


def test_register_promote_pull(registering):
    done = glance("register")
    assert done.exit_code == 0 and done.stdout.startswith(f"{NAME} version 1 (run "), done.output
    assert glance("register").stdout.startswith(f"{NAME} version 1 has these bytes already")
    assert glance("promote").stdout == f"{NAME} version 1 is champion (retention 97.0 %)\n"
    assert glance("pull", f"models:/{NAME}@champion").stdout == f"{NAME}-champion\n"
    assert bundle_digest(f"{NAME}-champion") == bundle_digest("artifacts/bundle")
    assert glance("pull", f"models:/{NAME}/1", "--out", "here").stdout == "here\n"


def test_promote_below_the_threshold_needs_force(registering):
    write_project(registering, retention=0.5)
    assert glance("register").exit_code == 0
    assert refused("promote") == (
        f"Error: {NAME} version 1 keeps 0.500 of the teacher's score, register.min_retention asks for 0.9: "
        "train a better one, or promote it with --force"
    )
    assert glance("promote", "--force").stdout == f"{NAME} version 1 is champion (retention 50.0 %)\n"


@pytest.mark.parametrize(
    "command",
    [
        *(["ablate", "rank"], ["ablations"], ["doctor"], ["evaluate", "artifacts/bundle"], ["fetch"], ["register"]),
        ["export", "--format", "fused", "out"],
        *(["generate", "a star"], ["generate", "a star", "--bundle", f"models:/{NAME}@candidate"], ["preset", "tiny"]),
        *(["import", "a", "b"], ["promote"], ["pull", f"models:/{NAME}@candidate"]),
    ],
)
def test_a_command_below_the_root_names_the_root(project, monkeypatch, command):
    (project / "dvc.yaml").write_text("stages: {}\n")
    (project / "notes/today").mkdir(parents=True)
    monkeypatch.chdir(project / "notes/today")
    monkeypatch.delenv("DVC_ROOT")
    below = f"{project}/notes/today is a folder below the project's root"
    assert refused(*command) == f"Error: {below}: run this in {project}"
    assert not any(Path.cwd().iterdir())


def test_generate_takes_folders_from_anywhere(project, monkeypatch):
    (project / "dvc.yaml").write_text("stages: {}\n")
    (project / "notes").mkdir()
    monkeypatch.chdir(project / "notes")
    done = glance("generate", "a star", "--bundle", "../artifacts/bundle", "--teacher", "../artifacts/teacher")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("command", [["pull", "models:/a@b"], ["promote"], ["register"]])
def test_a_server_that_is_down_is_one_sentence(project, monkeypatch, command):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert refused(*command).startswith("Error: no MLflow server answers at http://127.0.0.1:9")


def test_letters_that_the_terminal_lacks_are_escaped(project, monkeypatch):
    monkeypatch.setattr("pipeline.presets.apply", lambda name: [("teacher.negative_prompt", "", "\u661f")])
    done = CliRunner(charset="latin-1").invoke(cli.main, ["preset", "tiny"])
    assert done.exit_code == 0 and "'' -> '\\u661f'" in done.stdout


def test_doctor_shows_what_is_wrong_with_the_mend_and_fails(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    done = glance("doctor")
    assert done.exit_code == 1
    assert "ok   teacher: sha256:" in done.stdout
    assert "FAIL registry: no MLflow server answers" in done.stdout
    assert "     fix: start the server, or correct or unset MLFLOW_TRACKING_URI" in done.stdout
    assert "checks failed" in done.stderr


@pytest.mark.parametrize("module", ["generating", "importing", "checkup", "formats"])
def test_no_pipeline_is_imported_before_a_family_silences_its_warnings(module):
    lines = f"import sys, pipeline.bundle.{module}; print([name for name in sys.modules if 'pipeline_flux' in name])"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, encoding="utf-8", cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
