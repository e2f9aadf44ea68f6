"""The official benchmarks as a DVC pipeline of their own, on a small project, and by their commands."""

import json
import os
import random
import signal
import sys
import time

import pandas as pd
import pytest
from ruamel.yaml import YAML

from pipeline import artifacts

GLANCE = ("python", "-m", "pipeline.cli", "benchmark")


@pytest.fixture
def small(project):
    """The small project, set to the self-test; the folder is as it was afterwards."""
    file = project.folder / "benchmarks" / "params.yaml"
    content = YAML(typ="safe", pure=True).load(file)
    scorer = {"python": sys.executable, "checkout": "benchmarks/selftest"}
    content |= {"benchmarks": ["selftest"], "arms": ["teacher", "student"], "external": {"selftest_red": scorer}}
    YAML().dump(content, file)
    yield project
    project.succeed("git", "reset", "--quiet", "--hard")
    project.succeed("git", "clean", "-xd", "--quiet", "--force", "benchmarks", ".glance/benchmarks")


def dvc(project, *arguments):
    """The output of DVC in the folder of the benchmarks."""
    return project.succeed("python", "-m", "dvc", "--cd", "benchmarks", *arguments)


def test_one_command_gives_the_table_and_a_second_does_nothing(small):
    output = dvc(small, "repro")
    assert "Running stage 'collect'" in output
    rows = pd.read_csv(small.folder / "benchmarks/results/table.csv")
    assert set(rows["metric"]) == {"selftest_brightness", "selftest_red"} and set(rows["images"]) == {16}
    again = dvc(small, "repro")
    assert "Running stage" not in again and "up to date" in again
    assert json.loads(dvc(small, "status", "--json")) == {}
    report = (small.folder / "benchmarks/results/report.html").read_bytes()

    small.commit("benchmarks")
    dvc(small, "exp", "run", "-S", "limit=1")
    rows = pd.read_csv(small.folder / "benchmarks/results/table.csv")
    assert rows["subset"].all() and set(rows["prompts"]) == {6}
    assert (small.folder / "benchmarks/results/report.html").read_bytes() != report
    small.succeed("git", "reset", "--quiet", "--hard", "HEAD~1")


def test_a_generation_that_is_killed_at_any_moment_goes_on_to_the_same_bytes(small):
    small.succeed(*GLANCE, "prepare", "selftest")
    command = (*GLANCE, "generate", "selftest", "--arms", "teacher,student")
    small.succeed(*command)
    whole = digests(small)
    assert len(whole) == 32
    kills, moments = int(os.environ.get("GLANCE_KILLS", "3")), random.Random(0)
    for _ in range(kills):
        small.succeed("git", "clean", "-xd", "--quiet", "--force", ".glance/benchmarks", "benchmarks/images")
        stop = moments.randrange(1, 32)
        process = small.start(*command)
        while process.poll() is None and sum(1 for _ in images(small)) < stop:
            time.sleep(0.002)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        small.succeed(*command)
        assert digests(small) == whole


def images(project):
    """The files of the images that are there."""
    return (project.folder / ".glance/benchmarks/selftest").glob("*/[!.]*.png")


def digests(project):
    """The digest of each image, by its place."""
    return {file.relative_to(project.folder).as_posix(): artifacts.file_digest(file) for file in images(project)}


def test_the_commands_say_what_is_wrong_in_one_sentence(small):
    for arguments, sentence in (
        (("generate", "selftest"), "the prompts of selftest are not here: run `glance benchmark prepare selftest`"),
        (("score", "selftest"), "selftest has no images: run `glance benchmark generate selftest`"),
        (("collect",), "selftest has no images: run `glance benchmark generate selftest`"),
        (("generate", "selftst"), "the benchmark must be one of "),
        (("generate", "selftest", "--shard", "3/2"), "--shard must be i/n with i from 1 to n, got 3/2"),
    ):
        done = small.run(*GLANCE, *arguments)
        last = done.stdout.splitlines()[-1]
        assert done.returncode == 1 and last.startswith(f"Error: {sentence}"), done.stdout
        assert "Traceback" not in done.stdout
