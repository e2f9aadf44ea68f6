"""dvc.yaml: the graph is the intended one, and every stage lists what it really reads."""

import ast
import configparser
from functools import cache
from pathlib import Path

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from pipeline import artifacts

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipeline", "stages", "teacher")
EDGES = {
    "check": set(),
    "cache_trajectories": {"check"},
    "compute_partition": {"cache_trajectories"},
    "cache_anchors": {"compute_partition"},
    "train_slow": {"cache_trajectories", "compute_partition", "cache_anchors"},
    "train_fast": {"cache_trajectories", "compute_partition", "cache_anchors"},
    "train_controls": {"cache_trajectories", "compute_partition", "cache_anchors"},
    "export_adapter": {"compute_partition", "train_slow", "train_fast"},
    "generate_images": {"train_controls", "export_adapter"},
    "evaluate": {"generate_images"},
    "time_arms": {"train_controls", "export_adapter"},
    "report": {"train_slow", "train_fast", "train_controls", "generate_images", "evaluate", "time_arms"},
    "register": {"export_adapter", "evaluate", "time_arms", "report"},
}
LEFT_OUT = {  # what a stage may import without depending on it, and why it cannot change the stage's bytes
    "pipeline/__init__.py": "a docstring",
    "pipeline/artifacts.py": "names files and writes them whole: what is in them comes from the caller",
    "pipeline/bundle/__init__.py": "a docstring",
    "pipeline/console.py": "progress bars and sentences",
    "pipeline/evaluation/__init__.py": "a docstring",
    "pipeline/families/__init__.py": "which file holds a family",
    "pipeline/faults.py": "sentences about what is wrong",
    "pipeline/leftovers.py": "removes what lies under .glance",
    "pipeline/names.py": "sentences about unknown names",
    "pipeline/out_of_memory.py": "hints when memory runs out",
    "pipeline/params.py": "reads the values that DVC compares itself",
    "pipeline/progress.py": "a type",
    "pipeline/recording/__init__.py": "a docstring",
    "pipeline/registry/__init__.py": "a docstring",
    "pipeline/rival_params.py": "reads the values that DVC compares itself",
    "pipeline/scenes/__init__.py": "a docstring",
    "pipeline/training/__init__.py": "a docstring",
    "pipeline/training/costs.py": "how long rivals are trained, which their adapters show",
    "stages/__init__.py": "options, warnings and exit codes of every stage",
}
BACKBONES, FAMILIES = ROOT / "pipeline" / "backbones" / "__init__.py", ROOT / "pipeline" / "families"
NOT_RECORDED = ("teacher.hub", "teacher.family")  # where the folder came from, and what it says itself
FAMILY = "pipeline/families/${teacher.family}.py"
STAGES = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]
PARAMS = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")


def source(module: str) -> Path | None:
    """The file of a module of this project, or None."""
    path = ROOT.joinpath(*module.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def imported(tree: ast.AST) -> set[str]:
    """The modules of this project that a syntax tree imports, at any depth but not for type checkers alone."""
    names = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "this project imports by full names"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        names |= imported(node)
    return {name for name in names if name.split(".")[0] in PACKAGES}


@cache
def direct(file: Path) -> frozenset[Path]:
    """The project's files that importing one file imports first: what it names, and the packages around that."""
    files = set()
    for name in imported(ast.parse(file.read_text())):
        parts = name.split(".")
        files |= {source(".".join(parts[:i])) for i in range(1, len(parts) + 1)}
    return frozenset(files - {None})


def closure(file: Path) -> set[str]:
    """Every file of this project that running a stage's file imports, itself included.

    What loads a teacher imports the one file of its family by name: here they are all taken for imported. What only the
    modules of LEFT_OUT import is left out with them.
    """
    found, queue = set(), [file]
    while queue:
        file = queue.pop()
        if file not in found:
            found.add(file)
            name = file.relative_to(ROOT).as_posix()
            queue += direct(file) if name not in LEFT_OUT or file.name == "__init__.py" else ()
            queue += FAMILIES.glob("*.py") if file == BACKBONES else ()
    return {path.relative_to(ROOT).as_posix() for path in found}


def covers(dependency: str, file: str) -> bool:
    """Whether an entry of a stage's dependencies, a file or a folder, is or holds a file."""
    return file == dependency or file.startswith(f"{dependency}/")


@pytest.mark.parametrize("stage", EDGES)
def test_a_stage_depends_on_the_code_that_can_change_its_bytes_and_on_no_other(stage):
    listed = {dep for dep in STAGES[stage]["deps"] if dep.startswith(("pipeline", "stages"))}
    imported = closure(ROOT / "stages" / f"{stage}.py") - LEFT_OUT.keys()
    families = {file for file in imported if file.startswith("pipeline/families/")}
    assert not [file for file in imported - families if not any(covers(dep, file) for dep in listed)]
    assert not [dep for dep in listed - {FAMILY} if not any(covers(dep, file) for file in imported)]
    assert listed & {FAMILY, "pipeline/families"} or "${teacher.path}" not in STAGES[stage]["deps"]


def test_a_new_format_makes_no_stage_stale():
    """A format is for other tools: neither a stage's code nor the folders that it depends on reach one."""
    folder = "pipeline/bundle/formats"
    for stage, content in STAGES.items():
        assert not [dep for dep in content["deps"] if covers(dep, f"{folder}/new.py")]
        assert not [file for file in closure(ROOT / "stages" / f"{stage}.py") if covers(folder, file)]


def test_what_no_stage_depends_on_is_there():
    assert not [file for file in LEFT_OUT if not (ROOT / file).is_file()]


@pytest.mark.parametrize("stage", EDGES)
def test_a_stage_is_run_as_a_module_of_its_own_name(stage):
    assert STAGES[stage]["cmd"] == f"python -m stages.{stage}"


def test_the_graph_is_the_intended_one():
    repo = Repo(ROOT)
    graph = repo.index.graph
    here = [node for node in graph.nodes if Path(node.path) == ROOT / "dvc.yaml"]
    assert {node.name: {upstream.name for upstream in graph.successors(node)} for node in here} == EDGES


def test_the_graph_is_read_at_once():
    lines = (ROOT / "dvc.yaml").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 200 and max(map(len, lines)) <= 120


def test_each_section_is_read_by_a_stage_and_runtime_by_none():
    listed = {key.split(".")[0] for stage in STAGES.values() for key in stage["params"]}
    assert listed == set(PARAMS) - {"runtime"}


def test_the_recording_lists_its_parameters_so_that_a_new_one_leaves_it_fresh():
    wanted = [f"{section}.{key}" for section in ("teacher", "trajectories") for key in PARAMS[section]]
    assert STAGES["cache_trajectories"]["params"] == [key for key in wanted if key not in NOT_RECORDED]


def test_nothing_turns_the_run_cache_off():
    for stage in STAGES.values():
        assert all(isinstance(out, str) for out in stage.get("outs", [])), "cache: false and persist belong to no out"
    assert "outs" not in STAGES["register"]


def test_a_fresh_clone_times_its_own_arms_and_registers_them():
    assert STAGES["time_arms"]["metrics"] == [str(artifacts.LATENCY)], "with its times in git, a clone would skip both"
    assert str(artifacts.LATENCY) in STAGES["register"]["deps"]


def test_plots_lie_in_what_the_stages_write():
    outs = {out for stage in STAGES.values() for out in stage.get("outs", [])}
    for plot in YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["plots"]:
        name, settings = next(iter(plot.items())) if isinstance(plot, dict) else (plot, {})
        for file in settings["y"] if isinstance(settings.get("y"), dict) else [name]:
            assert outs & {file, *(str(folder) for folder in Path(file).parents)}, f"no stage writes {file}"


@pytest.mark.parametrize("name", [".DS_Store", "._x", "Thumbs.db", "Desktop.ini", ".cache/x", "__MACOSX/x"])
def test_dvc_sees_no_file_that_the_digests_leave_out(name):
    place = ROOT / "artifacts" / "teacher" / "transformer" / name
    assert artifacts.foreign(Path(name).parts[0]) and Repo(ROOT).dvcignore.is_ignored_file(str(place))


def test_dvc_sees_every_file_of_the_teacher():
    ignored, teacher = Repo(ROOT).dvcignore.is_ignored_file, ROOT / "artifacts" / "teacher"
    assert not any(ignored(str(teacher / name)) for name in artifacts.files(teacher))


def test_dvc_stages_its_files_and_reports_nothing():
    config = configparser.ConfigParser()
    config.read_string("\n".join(line.strip() for line in (ROOT / ".dvc" / "config").read_text().splitlines()))
    assert config["core"] == {"autostage": "true", "analytics": "false", "check_update": "false"}
