import errno
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.registry import connection, experiments, lock, places
from pipeline.registry.runs import Metric
from tests.published import client

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A root with a space in its name, and MLflow's environment as a user has it."""
    root = tmp_path / "my project"
    root.mkdir()
    monkeypatch.chdir(root)
    monkeypatch.setenv("DVC_ROOT", str(root))
    for name in [name for name in os.environ if name.startswith("MLFLOW")]:
        monkeypatch.delenv(name)
    for name in connection.ENVIRONMENT:  # so that what connect sets is taken back
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return root


@pytest.fixture
def store(project, database):
    """The project's store, without an experiment yet."""
    (project / ".glance").mkdir()
    shutil.copy(database, project / ".glance/mlflow.db")
    return connection.connect()


def test_the_default_store_lies_under_the_root_and_not_in_the_working_directory(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = connection.connect()
    with store.runs.started(store.experiments.ensure("name"), "run") as run_id:
        (tmp_path / "table.csv").write_text("a,b\n")
        store.runs.log_files(run_id, {tmp_path / "table.csv": "tables"})
    assert (project / ".glance/mlflow.db").is_file()
    assert [path.name for path in project.glob(".glance/mlartifacts/*/artifacts/tables/*")] == ["table.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my project", "table.csv"]


def test_a_server_of_the_environment_comes_first(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert places.tracking_uri() == "http://127.0.0.1:5000"


def test_connect_sets_one_retry_unless_the_user_chose_and_forgets_a_run_of_the_environment(monkeypatch, database):
    monkeypatch.setenv("MLFLOW_RUN_ID", "somebody else's")
    connection.connect(f"sqlite:///{database}")
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    assert "MLFLOW_RUN_ID" not in os.environ
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
    connection.connect(f"sqlite:///{database}")
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "4"


def test_more_numbers_than_one_batch_carries_all_arrive(store):
    params = {f"p{i}": i for i in range(250)}
    metrics = [Metric("loss", 1.0 / (1 + i), i) for i in range(2100)]
    with store.runs.started(store.experiments.ensure("name"), "run") as run_id:
        store.runs.log(run_id, params, metrics, {"out.with [odd] letters": "1"})
    mlflow = client()
    assert mlflow.get_run(run_id).data.params == {key: str(value) for key, value in params.items()}
    assert mlflow.get_run(run_id).data.tags["out.with _odd_ letters"] == "1"
    assert [m.value for m in mlflow.get_metric_history(run_id, "loss")] == [metric.value for metric in metrics]


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (ValueError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_run_ends_as_its_body_did(store, error, status):
    run_id = None
    try:
        with store.runs.started(store.experiments.ensure("name"), "run") as run_id:
            if error:
                raise error
    except (ValueError, KeyboardInterrupt) as raised:
        assert raised is error
    assert client().get_run(run_id).info.status == status


def test_a_missing_version_is_one_sentence(store):
    with pytest.raises(ConnectionError, match=r"^MLflow at sqlite:.* refused: .*nothing.*$") as raised:
        store.versions.by_alias("nothing", "candidate")
    assert "\n" not in str(raised.value)


@pytest.fixture
def at_once(monkeypatch):
    """MLflow alone would try for minutes: nothing may wait before it tries again."""
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"something waits {seconds} s"))


def test_a_server_that_is_down_is_one_sentence_at_once(at_once):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(ConnectionError, match=rf"no MLflow server answers at http://127.0.0.1:{port}: start it"):
        connection.connect(f"http://user:secret@127.0.0.1:{port}")


def test_a_server_that_never_answers_is_one_sentence(monkeypatch):
    monkeypatch.setattr(connection, "PING_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(ConnectionError, match="no MLflow server answers"):
            connection.connect(f"http://127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "postgresql://me:secret@127.0.0.1:9/runs",
            "the database postgresql://127.0.0.1:9/runs needs the Python package",
        ),
        ("mysql://127.0.0.1:9/runs", "needs the Python package mysqlclient: pip install mysqlclient"),
        ("mssql+pyodbc://127.0.0.1:9/runs", "needs the Python package pyodbc: pip install pyodbc"),
        (
            "sqlite:///notes.txt",
            r"notes.txt cannot be opened \(.*not a database\): correct or unset MLFLOW_TRACKING_URI",
        ),
        ("sqlite:///folder", r"my project/folder cannot be opened \(.*unable to open database file\): correct"),
        ("sqlite:///notes.txt/x.db", "my project/notes.txt/x.db cannot be opened"),
        ("nothing://127.0.0.1:9", "MLflow at nothing://127.0.0.1:9 refused: .*unsupported URI 'nothing://127.0.0.1:9'"),
    ],
)
def test_a_database_that_cannot_be_opened_is_one_sentence_at_once(project, monkeypatch, at_once, uri, message):
    (project / "folder").mkdir()
    (project / "notes.txt").write_text("no database " * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConnectionError, match=message) as raised:
        connection.connect()
    assert "\n" not in str(raised.value) and "secret" not in str(raised.value)


def test_the_own_database_that_cannot_be_opened_is_one_sentence(project):
    (project / ".glance").mkdir()
    (project / ".glance/mlflow.db").write_text("no database " * 100)
    with pytest.raises(ConnectionError, match=r"mlflow.db cannot be opened \(.*\): restore it, or move it away"):
        connection.connect()


def log(store, project):
    """Writes a file into a new run of the experiment `name`."""
    (project / "table.csv").write_text("a,b\n")
    with store.runs.started(store.experiments.ensure("name"), "run") as run_id:
        store.runs.log_files(run_id, {project / "table.csv": "."})


def test_the_tables_of_another_mlflow_are_one_sentence(project, database):
    newer = shutil.copy(database, project / "newer.db")
    for statement in ("UPDATE alembic_version SET version_num = 'feedfacecafe'", "DROP TABLE scorer_versions"):
        with closing(sqlite3.connect(newer)) as opened, opened:
            opened.execute(statement)
        with pytest.raises(ConnectionError, match="newer.db belong to another MLflow than the installed 3.*: install "):
            connection.connect(f"sqlite:///newer.db?{statement[:4]}=1")  # MLflow remembers a database by its URI


def test_a_probe_leaves_nothing(store, project):
    store.experiments.probe("name")
    log(store, project)
    before = sorted(project.rglob("*"))
    store.experiments.probe("name")
    assert sorted(project.rglob("*")) == before


def test_a_database_that_cannot_be_written_is_one_sentence(store, project, monkeypatch):
    monkeypatch.setattr(experiments, "BUSY_S", 0.1)
    with closing(sqlite3.connect(project / ".glance/mlflow.db", isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        for needs_it in (store.experiments.probe, store.experiments.ensure):
            with pytest.raises(ConnectionError, match=r"mlflow.db cannot be written \(database is locked\): let this"):
                needs_it("name")


def test_an_artifact_store_whose_library_is_not_installed_is_one_sentence(store, project):
    client().create_experiment("name", artifact_location="s3://bucket/runs")
    for needs_it in (lambda: store.experiments.probe("name"), lambda: log(store, project)):
        with pytest.raises(ConnectionError, match="^the artifact store s3://bucket/.* needs the Python package boto3"):
            needs_it()


def test_an_artifact_folder_that_cannot_be_written_or_read_is_one_sentence(store, project):
    (project / ".glance/mlartifacts").write_text("in the way")
    for needs_it in (lambda: store.experiments.probe("name"), lambda: log(store, project)):
        with pytest.raises(ConnectionError, match=r"^the artifact store /.*/mlartifacts.* cannot be written \(.*\): "):
            needs_it()
    (project / "lost.json").symlink_to("nowhere")
    with pytest.raises(ConnectionError, match=r"^the artifact store /.*my project cannot be read \(.*\): let this"):
        store.versions.files(project.as_uri())


def test_a_download_that_fails_says_why(store, project):
    (project / "bundle").mkdir()
    (project / "bundle/a.json").symlink_to("/etc/hostname")
    with pytest.raises(ConnectionError, match=r"bundle cannot be read \(Invalid path: .*outside the artifact dir"):
        store.versions.download((project / "bundle").as_uri(), project)


def test_a_full_disk_stays_a_full_disk(store, project, monkeypatch):
    def fails(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    monkeypatch.setattr("mlflow.store.artifact.local_artifact_repo.LocalArtifactRepository.log_artifact", fails)
    with pytest.raises(OSError, match="No space left") as raised:
        log(store, project)
    assert raised.value.errno == errno.ENOSPC


def test_files_are_not_kept_in_a_folder_of_another_machine(store):
    client().create_experiment("name", artifact_location="/srv/of-a-server/mlruns/1")
    for needs_it in (store.experiments.probe, store.experiments.ensure):
        with pytest.raises(ConnectionError, match="keeps its files in /srv/of-a-server/mlruns/1, which is not on this"):
            needs_it("name")
    assert not Path("/srv/of-a-server").exists()


def test_the_lock_may_be_entered_twice_by_one_process():
    with lock.locked(), lock.locked():
        pass


def test_a_lock_that_stays_taken_is_one_sentence(project, monkeypatch):
    monkeypatch.setattr(lock, "LOCK_S", 0.2)
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pipeline.registry.lock import locked
with locked():
    print("taken", flush=True)
    sys.stdin.read()
"""
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "taken\n"
        with pytest.raises(TimeoutError, match=r"mlflow.lock is held by another registration for more than 0.2 s"):
            with lock.locked():
                pass
    finally:
        other.communicate()


def test_mlflow_is_imported_on_connection_only():
    modules = [f"pipeline.registry.{file.stem}" for file in ROOT.glob("pipeline/registry/[a-z]*.py")]
    program = f"import sys, {', '.join(modules)}; print({{'mlflow', 'torch'}} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True) == "set()\n"


def test_these_modules_alone_import_mlflow():
    modules = [*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("stages/*.py")]
    words = ("import mlflow", "from mlflow")
    found = {path for path in modules if any(word in path.read_text() for word in words)}
    names = ("artifact_store", "connection", "refusals", "runs", "versions")
    assert found == {ROOT / "pipeline" / "registry" / f"{name}.py" for name in names}
