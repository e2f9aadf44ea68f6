"""The grids under experiments/, their expansion, and what is read back and shown of their runs."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from pipeline import ablations, params, styles
from pipeline.ablations import document, experiments, figure, grid, results
from pipeline.ablations.results import Result

ROOT = Path(__file__).parent.parent
GRID = {
    "question": "How large must an adapter be?",
    "paper": "Rank 16.",
    "answer": None,
    "arms": ["student", "single"],
    "set": {"train_controls.arms": ["single"]},
    "variants": {4: {"training.rank": 4, "training.alpha": 4}, "Rank 8!": {"training.rank": 8, "training.alpha": 8.0}},
    "seeds": [None, 2],
    "plot": {"x": "training.rank", "y": ["retention", "psnr"]},
}


@pytest.fixture(scope="module")
def defaults():
    return params.load(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def rank(defaults):
    return grid.from_dict("rank", GRID, defaults)


def change(key, value):
    """The grid with one key changed; None takes it away."""
    content = {name: old for name, old in GRID.items() if name != key}
    return content if value is ... else content | {key: value}


def result(run, arm="student", jobs=1, base="b0", **metrics):
    row = {"nfe": 8.0, "retention": 0.9, "retention_low": 0.85, "retention_high": 0.95, "psnr": 30.0, "ssim": 0.9}
    changes = " ".join(run.changes)
    return Result(run.variant, run.seed, arm, run.name, changes, base, "c0", "r0", jobs, 504, row | metrics)


def test_variants_times_seeds_become_runs_that_git_can_name(rank):
    assert [run.name for run in rank.runs] == ["rank-4", "rank-rank-8", "rank-4-s2", "rank-rank-8-s2"]
    for run in rank.runs:
        subprocess.run(["git", "check-ref-format", f"refs/exps/ab/cd/{run.name}"], check=True)


def test_a_run_changes_what_its_variant_its_grid_and_its_seed_say_and_nothing_else(rank, defaults):
    assert rank.runs[0].changes == ["train_controls.arms=[single]", "training.rank=4", "training.alpha=4"]
    seeds = ["train_slow.seed=21", "train_fast.seed=22", "train_controls.seed=23"]
    assert rank.runs[2].changes == [*rank.runs[0].changes, *seeds]
    changed = {key.split("=")[0] for key in rank.runs[2].changes}
    plain = grid.from_dict("plain", change("variants", {"a": {}}) | {"set": {}, "plot": PLAIN}, defaults).runs[0].params
    assert {key for key, value in rank.runs[2].params.items() if value != plain[key]} == changed
    assert rank.touched == changed and not changed & rank.base(plain).keys()
    assert not any(key.startswith(("runtime.", "register.")) for key in rank.base(plain))


PLAIN = {"x": "variant", "y": "psnr"}


def test_the_first_seed_is_the_one_of_the_parameters(defaults):
    own, zero = grid.from_dict("seed", change("seeds", [None, 0]), defaults).runs[::2]
    assert own.params == zero.params, "a question with seeds shares its trainings with one without"


def test_what_is_left_out_is_the_student_of_one_run(defaults):
    content = {"question": "Why?", "variants": {"a": {"training.rank": 4}}, "plot": PLAIN}
    lone = grid.from_dict("lone", content, defaults)
    assert lone.arms == ("student",) and lone.seeds == (None,) and lone.plot.y == ("psnr",) and len(lone.runs) == 1


@pytest.mark.parametrize("name", grid.names(ROOT / "experiments"))
def test_a_shipped_grid_is_valid(name, defaults):
    question = grid.load(name, defaults, ROOT / "experiments")
    assert question.question.endswith("?") and len(question.runs) >= 2
    names = [run.name for run in question.runs]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("answers", "yes", "answers is not a key of a grid, which has question, paper"),
        ("variants", ..., "variants is missing"),
        ("question", "", "question must be a sentence, got ''"),
        ("answer", 3, "answer must be a sentence or null, got 3"),
        ("arms", ["pupil"], "arms must be among teacher, base_guided"),
        ("set", {"rank": 3}, "set must map section.key of params.yaml to values, got {'rank': 3}"),
        ("variants", {}, "variants must map labels to parameters, got {}"),
        ("variants", {"a": 3}, "variants.a must map section.key"),
        ("variants", {"a": {"training.rang": 3}}, "variants.a: training.rang is not a parameter of params.yaml"),
        ("variants", {"a": {"training.rank": 0}}, "variants.a: training.rank must be at least 1, got 0"),
        ("variants", {"a": {"training.rank": "8"}}, "variants.a: training.rank must be an integer, got '8'"),
        ("variants", {"a": {"partition.rule": "best"}}, "variants.a: partition.rule must be one of snr, uniform"),
        (
            "variants",
            {"a": {"partition.slow_steps": 11}},
            "variants.a: partition.slow_steps must fit into the 5 recorded",
        ),
        ("variants", {"+": {"training.rank": 8}}, "variants must have a letter or a digit in each label, got '+'"),
        ("variants", {"a b": {"training.rank": 8}, "a+b": {"training.rank": 4}}, "got rank-a-b from a b and a+b"),
        ("seeds", [], "seeds must be a list of different integers from 0 or null, got []"),
        ("seeds", [1, 1], "seeds must be a list of different integers from 0 or null, got [1, 1]"),
        ("seeds", [-1], "seeds must be a list of different integers"),
        ("plot", {"x": "variant"}, "plot must hold x, y and possibly lines, got {'x': 'variant'}"),
        ("plot", {"x": "variant", "y": "fid"}, "plot.y must be among nfe, retention, score"),
        ("plot", {"x": "training.batch", "y": "psnr"}, "or a parameter that every variant sets, got 'training.batch'"),
        ("plot", {"x": "nfe", "y": "psnr", "lines": "nfe"}, "plot.lines must be arm or a parameter that every variant"),
    ],
)
def test_a_wrong_grid_is_refused_with_file_key_rule_and_value(tmp_path, defaults, key, value, message):
    YAML().dump(change(key, value), tmp_path / "rank.yaml")
    with pytest.raises(ValueError) as refusal:
        grid.load("rank", defaults, tmp_path)
    assert str(refusal.value).startswith(f"{tmp_path / 'rank.yaml'}: ") and message in str(refusal.value)


def test_a_missing_a_broken_and_an_empty_file_are_refused(tmp_path, defaults):
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "empty.yaml").write_text("")
    for name, message in (
        ("no", "no.yaml is missing; .* has broken, empty"),
        ("broken", "broken.yaml is not valid YAML"),
        ("empty", "empty.yaml: a grid must hold the keys question, paper, .* got None"),
    ):
        with pytest.raises(ValueError, match=message):
            grid.load(name, defaults, tmp_path)


def test_values_arrive_in_the_parameters_as_they_were(tmp_path):
    from dvc.utils.hydra import apply_overrides  # what `dvc exp run -S` does

    values = [3, 0.5, 1e-5, True, None, "snr", "true", "prompts/a b.txt", "it's", "", [], ["single", "official"]]
    file = tmp_path / "params.yaml"
    for value in values:
        file.write_text("a: {b: 0}\n")
        apply_overrides(file, [f"a.b={grid.hydra(value)}"])
        assert YAML(typ="safe", pure=True).load(file)["a"]["b"] == value, grid.hydra(value)


def test_parameters_agree_where_both_know_them_and_they_matter():
    ours = {"training.rank": 4, "train_controls.arms": ("single",), "runtime.threads": 1}
    assert grid.agree(
        ours, {"training.rank": 4.0, "train_controls.arms": ["single"], "runtime.threads": 0, "new.key": 1}
    )
    assert not grid.agree(ours, {"training.rank": 8})


@pytest.fixture
def styled(defaults):
    """params.yaml with two LoRAs of the teacher."""
    loras = tuple(map(styles.parse, ["own.safetensors:1", "someone/shade@main/shade.safetensors:0.8"]))
    return replace(defaults, teacher=replace(defaults.teacher, loras=loras))


def test_runs_of_a_styled_teacher_keep_its_loras(styled):
    run = grid.from_dict("rank", GRID, styled).runs[0]
    assert run.params["teacher.loras"] == ["own.safetensors", "someone/shade@main/shade.safetensors:0.8"]
    recorded = run.params | {"teacher.loras": ["own.safetensors:1.0", "someone/shade@main/shade.safetensors:.8"]}
    assert grid.agree(recorded, run.params), "two wordings of one weight are the same LoRA"
    for other in ([], ["own.safetensors:0.9", "someone/shade@main/shade.safetensors:0.8"]):
        assert not grid.agree(run.params | {"teacher.loras": other}, run.params)


def test_a_variant_may_change_the_loras_of_a_styled_teacher(styled):
    content = change("variants", {"weak": {"teacher.loras": ["own.safetensors:0.5"]}, "none": {"teacher.loras": []}})
    weak, bare = grid.from_dict("style", content | {"seeds": [None], "plot": PLAIN}, styled).runs
    assert weak.params["teacher.loras"] == ["own.safetensors:0.5"] and bare.params["teacher.loras"] == []
    assert weak.changes[-1] == "teacher.loras=['own.safetensors:0.5']"


def test_a_queued_run_takes_the_loras_along_that_git_ignores(styled, rank):
    def command(run):
        return " ".join(experiments.queue_command(run, jobs=1, threads=0, force=False))

    assert " --copy-paths loras --set-param " in command(grid.from_dict("rank", GRID, styled).runs[0])
    assert "--copy-paths" not in command(rank.runs[0])


def test_experiments_of_a_styled_teacher_are_found_again(repository, styled):
    question = grid.from_dict("rank", GRID, styled)
    repository("rank-4", question.runs[0].params, psnr=31.0)
    rows = experiments.collect(question, [])
    assert [(row.arm, row.metrics["psnr"]) for row in rows] == [("student", 31.0), ("teacher", None)]


def test_a_queued_run_names_itself_ends_before_the_registry_and_leaves_cores_to_others(rank):
    command = experiments.queue_command(rank.runs[0], jobs=2, threads=3, force=True)
    assert command[:6] == ["dvc", "exp", "run", "--queue", "--name", "rank-4"] and command[-1] == "report"
    assert "runtime.threads=3" in command and "--force" in command and "glance ablate, jobs 2" in command
    plain = experiments.queue_command(rank.runs[0], jobs=1, threads=0, force=False)
    assert not {"--force", "runtime.threads=0"} & set(plain)


def test_the_queue_is_read_from_what_dvc_prints():
    states, workers = experiments.status(
        "Task     Name    Created    Status\n"
        "e173e87  rank-4  06:38 PM   Queued\n"
        "761f719  other   Nov 20, 2026   Running\n"
        "ccb4a98  rank-4  06:34 PM   Failed\n"
        "a43ff52  done    06:34 PM   Success\n\n"
        "Worker status: 1 active, 2 idle\n"
    )
    assert states == {"rank-4": "Queued", "other": "Running", "done": "Success"} and workers == 3
    assert experiments.status("No experiment tasks in the queue.\n") == ({}, 0)


class Queue:
    """DVC's queue as a script: at each look the next states, for ever the last; `workers` of them are alive."""

    def __init__(self, monkeypatch, *looks, workers=1):
        self.looks, self.workers, self.calls = list(looks), workers, []
        monkeypatch.setattr(experiments, "_call", self.call)
        monkeypatch.setattr(experiments, "_revisions", lambda head: self.revisions)
        monkeypatch.setattr(experiments.time, "sleep", lambda seconds: None)
        monkeypatch.setattr(experiments, "STATUS_S", 0.0)
        self.revisions = {}

    def call(self, *command, check=True):
        self.calls.append(" ".join(command[1:]))
        if command[1:3] != ("queue", "status"):
            return ""
        states = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        lines = [f"abcdef0  {name}  06:38 PM  {state}" for name, state in states.items()]
        return "\n".join([*lines, f"Worker status: {self.workers} active, 0 idle"])


def follow(*names):
    said = []
    return experiments._follow(names, {"forced": "r0"}, "head", ("dvc", "queue", "start"), said.append), said


def test_what_is_done_failed_or_forced_ends_the_wait(monkeypatch):
    queue = Queue(monkeypatch, {"a": "Running", "b": "Queued"}, {"b": "Failed", "forced": "Success"})
    queue.revisions = {"a": "r1", "forced": "r0"}
    failed, said = follow("a", "b", "forced")
    assert failed == ["b"] and said[0].startswith("[1/3] a is done after") and "`dvc queue logs b`" in said[1]
    assert said[2].startswith("[3/3] forced is done")


def test_a_task_between_two_lists_of_the_queue_is_not_given_up(monkeypatch):
    Queue(monkeypatch, {}, {"a": "Running"}, {}, {}, {"a": "Success"})
    assert follow("a")[0] == []


def test_a_run_whose_worker_was_killed_is_given_up(monkeypatch):
    queue = Queue(monkeypatch, {"a": "Running"}, workers=0)
    assert follow("a")[0] == ["a"] and queue.calls == ["queue status"] * experiments.PATIENCE


def test_a_queue_without_workers_gets_some(monkeypatch):
    queue = Queue(monkeypatch, {"a": "Queued"}, {"a": "Success"}, workers=0)
    assert follow("a")[0] == [] and queue.calls == ["queue status", "queue start", "queue status"]


def test_before_queueing_what_is_done_or_lost_leaves_the_queue_and_what_waits_stays(monkeypatch):
    queue = Queue(monkeypatch, {"a": "Running", "b": "Queued", "c": "Failed", "other": "Success"}, workers=0)
    assert experiments._tidy(["a", "b", "c", "d"]) == {"b"}
    assert queue.calls == ["queue status", "queue kill a", "queue remove a c"]
    queue = Queue(monkeypatch, {"a": "Running"}, workers=1)
    assert experiments._tidy(["a"]) == {"a"} and queue.calls == ["queue status"]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository as the working directory; `made` commits an experiment as DVC does."""
    monkeypatch.chdir(tmp_path)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)

    def git(*arguments):
        identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
        done = subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "--quiet", "--initial-branch", "main")
    git("commit", "--quiet", "--allow-empty", "--message", "start")
    head = git("rev-parse", "HEAD")

    def made(name, values, message="glance ablate, jobs 1", psnr=30.0, stage="report", earlier=False):
        sections = {}
        for key, value in values.items():
            section, own = key.split(".")
            sections.setdefault(section, {})[own] = list(value) if isinstance(value, tuple) else value
        lock = {"schema": "2.0", "stages": {"train_slow": {"cmd": "x"}, stage: {"cmd": "y", "deps": [{"path": "z"}]}}}
        lock["stages"] |= {} if earlier else {"generate_images": {"cmd": "w"}}
        lock["stages"][stage] |= {"params": {"params.yaml": sections}, "outs": [{"path": "o"}]}
        YAML().dump(lock, Path("dvc.lock"))
        arms = {"student": {"nfe": 8, "psnr": psnr}, "teacher": {"nfe": 100, "psnr": None}}
        Path("artifacts/evaluation").mkdir(parents=True, exist_ok=True)
        speed = {"student": {"speedup_batch1": 9.0}, "teacher": {"speedup_batch1": 1.0}}
        if earlier:  # the metrics held the times
            arms = {name: row | speed[name] for name, row in arms.items()}
        else:
            Path("artifacts/timing").mkdir(parents=True, exist_ok=True)
            Path("artifacts/timing/latency.json").write_text(json.dumps({"arms": speed}))
        Path("artifacts/evaluation/metrics.json").write_text(json.dumps({"prompts": 504, "arms": arms}))
        git("add", "--all")
        git("commit", "--quiet", "--message", message)
        git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", "HEAD")
        git("reset", "--quiet", "--hard", head)

    made.head = head
    return made


def test_results_come_from_the_experiments_that_have_the_runs_parameters(repository, rank):
    repository("rank-4", rank.runs[0].params, psnr=31.0)
    repository("rank-rank-8", rank.runs[0].params)  # named so, but with rank 4
    repository("rank-4-s2", rank.runs[2].params, stage="evaluate")  # stopped before its report
    repository("rank-rank-8-s2", rank.runs[3].params, message="by hand", psnr=33.0)
    rows = experiments.collect(rank, [])
    assert [(row.variant, row.seed, row.arm, row.metrics["psnr"], row.jobs) for row in rows] == [
        ("4", None, "student", 31.0, 1),
        ("4", None, "teacher", None, 1),
        ("Rank 8!", 2, "student", 33.0, None),
        ("Rank 8!", 2, "teacher", None, None),
    ]
    assert [row.metrics["speedup_batch1"] for row in rows] == [9.0, 1.0, 9.0, 1.0]
    assert {row.baseline for row in rows} == {repository.head[:12]} and {row.prompts for row in rows} == {504}
    assert len({row.base for row in rows}) == 1, "what the variants change does not count"


def test_the_experiments_of_an_earlier_version_are_read_too(repository, rank):
    repository("rank-4", rank.runs[0].params, stage="evaluate", earlier=True)
    row, _ = experiments.collect(rank, [])
    assert (row.variant, row.arm, row.metrics) == ("4", "student", {"nfe": 8, "psnr": 30.0, "speedup_batch1": 9.0})


def test_a_run_without_an_experiment_here_keeps_its_row_while_the_question_asks_for_it(repository, rank):
    repository("rank-4", rank.runs[0].params)
    changed = replace(rank.runs[1], overrides={"training.rank": 9})
    old = [result(rank.runs[0], psnr=1.0), result(rank.runs[2], psnr=2.0), result(changed, psnr=3.0)]
    assert [row.metrics["psnr"] for row in experiments.collect(rank, old) if row.arm == "student"] == [30.0, 2.0]


def test_only_what_is_not_there_is_queued(repository, rank):
    repository("rank-4", rank.runs[0].params)
    repository("rank-rank-8", rank.runs[0].params)
    said = []
    assert experiments.execute(rank.runs, jobs=1, force=False, dry=True, echo=said.append) == []
    assert said[0] == f"rank-4 is there, made of {repository.head[:12]}"
    assert said[1].startswith("git update-ref -d refs/exps/") and said[1].endswith("/rank-rank-8")
    queued = [line.split(" --message")[0] for line in said[2:-1]]
    assert queued == [f"dvc exp run --queue --name {run.name}" for run in rank.runs[1:]]
    assert said[-1] == "dvc queue start --jobs 1"
    forced = []
    experiments.execute(rank.runs, jobs=1, force=True, dry=True, echo=forced.append)
    assert len(forced) == 5 and all("--force" in line for line in forced[:-1])


def test_outside_a_repository_it_says_so(tmp_path, monkeypatch, rank):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(ValueError, match="`git for-each-ref .*` failed: fatal: not a git repository"):
        experiments.collect(rank, [])


def test_a_table_reads_back_as_it_was_written(tmp_path, rank):
    rows = [result(rank.runs[0], arm="teacher", psnr=None), result(rank.runs[2], jobs=None, extra=0.25)]
    results.write("rank", rows, tmp_path)
    first = results.path("rank", tmp_path).read_bytes()
    read = results.read("rank", tmp_path)
    assert read[0] == replace(rows[0], metrics=rows[0].metrics | {"extra": None}) and read[1] == rows[1]
    results.write("rank", read, tmp_path)
    assert results.path("rank", tmp_path).read_bytes() == first


def test_runs_of_before_a_column_stand_beside_runs_that_have_it(tmp_path, rank):
    old, new = result(rank.runs[0]), result(rank.runs[1], detail=0.87)
    results.write("rank", [old, new], tmp_path)
    first, second = results.read("rank", tmp_path)
    assert (first.metrics["detail"], second.metrics["detail"]) == (None, 0.87)
    assert [document.cell("detail", [row]) for row in (first, second)] == [document.DASH, "0.870"]
    assert "detail" not in document.section(rank, [first, second]), "tables stay as wide as they were"


def test_a_table_that_is_none_is_refused(tmp_path):
    assert results.read("rank", tmp_path) == []
    for text in ("variant,seed\na,b\n", "hello"):
        (tmp_path / "rank.csv").write_text(f"{text}\nx,y\n")
        with pytest.raises(ValueError, match="rank.csv is not a table of results"):
            results.read("rank", tmp_path)


PAGE = """\
## How large must an adapter be?

The paper: Rank 16.

Not answered yet.

| variant | arm | forwards | retention | PSNR, dB | SSIM |
| --- | --- | --- | --- | --- | --- |
| 4 | Student | 8 | 91.0 % (90.0 to 92.0) | 30.5 (30.0 to 31.0) | 0.900 |
| 4 | One adapter | 8 | 90.0 % [85.0, 95.0] | - | 0.900 |
| Rank 8! | Student | 8 | 90.0 % [85.0, 95.0] | 30.0 | 0.900 |

![How large must an adapter be?](ablations/rank.png)

504 held-out captions; run on `c0`; `experiments/rank.yaml`. Not measured yet: rank-rank-8-s2. One training seed \
in some row: close rows are not told apart.
"""


@pytest.fixture
def rows(rank):
    first, other, second, _ = rank.runs
    return [
        result(first),
        result(second, retention=0.92, psnr=31.0),
        result(first, arm="single", psnr=None),
        result(other, jobs=2),
        result(other, arm="swapped"),
    ]


def test_a_question_becomes_a_table_with_ranges_over_seeds_and_intervals_of_one(rank, rows):
    assert document.section(rank, rows) == PAGE


def test_the_answer_of_a_person_stands_over_the_table(rank, rows):
    assert "\n**Here:** Rank 4 will do.\n" in document.section(replace(rank, answer="Rank 4 will do."), rows)


def test_a_question_without_results_says_how_to_get_them(rank):
    assert document.section(rank, []).endswith("Not measured yet: `glance ablate rank`.\n")


def test_rows_of_different_parameters_are_not_passed_off_as_comparable(rank, rows):
    mixed = [*rows[:-1], replace(rows[-1], base="b1")]
    assert "do not share the rest of their parameters" in document.section(rank, mixed)


def test_speed_is_shown_of_runs_that_had_the_machine_to_themselves(rank, rows):
    timed = [replace(row, jobs=1, metrics=row.metrics | {"speedup_batch1": 9.26}) for row in rows]
    assert "| speed-up, batch 1 |" in document.section(rank, timed) and "| 9.3 |" in document.section(rank, timed)
    shared = [replace(row, jobs=jobs) for row, jobs in zip(timed, (1, 1, 1, 2, 1), strict=True)]
    unknown = [replace(row, jobs=None) for row in timed]
    assert "speed-up" not in document.section(rank, shared) + document.section(rank, unknown)


def test_a_plot_has_a_line_per_arm_by_rising_x_with_its_interval(rank, rows):
    assert figure.lines(rank, rows[::-1], "psnr") == {"Student": [(4, 30.5, 30.0, 31.0), (8, 30.0, 30.0, 30.0)]}
    assert figure.lines(rank, rows, "retention")["One adapter"] == [(4, 0.9, 0.85, 0.95)]


@pytest.mark.parametrize(
    ("x", "lines", "expected"),
    [
        ("variant", "arm", {"Student": ["4", "Rank 8!"], "One adapter": ["4"]}),
        ("nfe", "training.rank", {"rank 4, Student": [8.0], "rank 4, One adapter": [8.0], "rank 8, Student": [8.0]}),
    ],
)
def test_a_plot_may_go_over_labels_or_metrics_and_have_a_line_per_parameter(rank, rows, x, lines, expected):
    drawn = figure.lines(replace(rank, plot=grid.Plot(x, ("ssim",), lines)), rows, "ssim")
    assert {line: [mark[0] for mark in marks] for line, marks in drawn.items()} == expected


@pytest.mark.parametrize("plot", [grid.Plot("training.rank", ("retention", "score")), grid.Plot("variant", ("psnr",))])
def test_a_plot_is_the_same_to_the_last_byte(tmp_path, rank, rows, plot):
    for name in ("a.png", "b.png"):
        figure.draw(replace(rank, plot=plot), rows, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_is_what_the_command_makes_of_the_committed_files(defaults):
    grids = [grid.load(name, defaults, ROOT / "experiments") for name in grid.names(ROOT / "experiments")]
    found = {question.name: results.read(question.name, ROOT / results.FOLDER) for question in grids}
    page = document.page(grids, found)
    assert (ROOT / document.FILE).read_text(encoding="utf-8") == page, (
        "run `glance ablations` and commit what it writes"
    )
    for question in grids:
        shown = bool(document.cells(question, found[question.name]))
        assert (ROOT / document.PLOTS / f"{question.name}.png").is_file() == shown


def test_a_question_that_lost_its_results_loses_its_table_and_plot(repository, rank, rows, monkeypatch):
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text())
    Path("experiments").mkdir()
    YAML().dump(GRID, Path("experiments/rank.yaml"))
    results.write("rank", rows)
    said = []
    ablations.renew(said.append)
    assert said == ["rank: 3 of 4 runs", "docs/ablations.md"] and Path("docs/ablations/rank.png").is_file()
    YAML().dump(change("seeds", [7]), Path("experiments/rank.yaml"))
    ablations.renew(said.append)
    assert said[2] == "rank: the question has changed, its table loses rank-4, rank-4-s2, rank-rank-8"
    assert not Path("docs/ablations/rank.png").exists() and not results.path("rank").exists()
    assert "Not measured yet" in Path("docs/ablations.md").read_text()


def test_a_command_that_leaves_a_worker_behind_is_not_waited_for():
    worker = psutil.Process(int(experiments._call("sh", "-c", "sleep 60 & echo $!")))
    assert worker.is_running()
    worker.kill()
    with pytest.raises(ValueError, match="`sh -c 'echo ERROR: no >&2; exit 3'` failed: ERROR: no"):
        experiments._call("sh", "-c", "echo ERROR: no >&2; exit 3")
    assert experiments._call("sh", "-c", "echo lost; exit 3", check=False) == ""
