import pytest

from pipeline.registry import places


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """The project's root, which is not the working directory."""
    root = tmp_path / "project"
    (root / "below").mkdir(parents=True)
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(root / "below")
    return root


def test_a_relative_database_lies_under_the_root_whatever_the_working_directory(root, monkeypatch):
    assert places.tracking_uri() == f"sqlite:///{root}/.glance/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs/x.db")
    assert places.database_file(places.tracking_uri()) == root / "runs/x.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////else/where.db")
    assert places.tracking_uri() == "sqlite:////else/where.db"


@pytest.mark.parametrize(
    "uri", ["http://host:5000", "https://a:b@host/x", "databricks", "databricks://profile", "uc://x"]
)
def test_a_server_is_taken_as_it_is(uri):
    assert places.anchored(uri) == uri
    assert places.database_file(uri) is None


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("mlruns", r"must be a server \(http://host:5000\) or a database \(sqlite:///file.db\), got mlruns: "),
        ("/home/me/mlruns", "must be a server .* got /home/me/mlruns: "),
        (
            "file:///home/me/mlruns",
            "must be a server .* got file:///home/me/mlruns: .* unset it to use the pro",
        ),
        ("localhost:5000", "must begin with http:// or https://, got localhost:5000: set http://localhost:5000"),
        ("127.0.0.1:5000/", "set http://127.0.0.1:5000/"),
        ("sqlite://", "must name a file, as sqlite:///file.db does, got sqlite://"),
        ("sqlite:///:memory:", "must name a file"),
        ("sqlite:///file:x?mode=memory&uri=true", "must name a file"),
        ("sqlite://x.db", "must name a file"),
    ],
)
def test_what_is_no_server_and_no_lasting_database_is_refused(uri, message, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConnectionError, match=f"^MLFLOW_TRACKING_URI {message}" if "must" in message else message):
        places.tracking_uri()


@pytest.mark.parametrize("name", ["100%25", "a%41b", "q?x", "q#x", "a b", "Проект"])
def test_every_letter_may_stand_in_the_path_of_the_project(root, monkeypatch, name):
    monkeypatch.setenv("DVC_ROOT", str(root / name))
    assert places.database_file(places.tracking_uri()) == root / name / ".glance/mlflow.db"
    assert places.folder((root / name).as_uri()) == root / name


def test_what_another_root_recorded_is_looked_for_in_the_own_folder_first(root):
    recorded = "file:///old%20place/.glance/mlartifacts/1ab/artifacts/bundle"
    here = root / ".glance/mlartifacts/1ab/artifacts/bundle"
    assert places.own(recorded) == places.own("/old/.glance/mlartifacts/1ab/artifacts/bundle") == here.as_uri()
    assert places.present(recorded) == recorded
    here.mkdir(parents=True)
    assert places.present(recorded) == here.as_uri()


@pytest.mark.parametrize(
    "uri", ["s3://bucket/.glance/mlartifacts/1", "mlflow-artifacts:/1/a", "file:///mlruns/1", "/mlruns/1"]
)
def test_what_lies_elsewhere_stays_there(uri):
    assert places.own(uri) == places.present(uri) == uri


def test_a_message_does_not_show_a_password():
    assert places.public_uri("https://me:secret@host:1/path") == "https://host:1/path"
