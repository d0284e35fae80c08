"""The store of a run, and the command that opens it."""

import shlex
import sys
from pathlib import Path

import pytest

from runyard.tracking import stores
from runyard.tracking.stores import TrackingError, artifact_location, resolve_tracking_uri
from runyard.tracking.ui import ui_command


@pytest.fixture(autouse=True)
def _no_setting_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")


def test_the_default_is_a_file_beside_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_tracking_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000/")
    assert resolve_tracking_uri(None, tmp_path) == "http://host:5000"
    assert resolve_tracking_uri("http://other:80", tmp_path) == "http://other:80"


def test_sqlite_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_tracking_uri("sqlite:///a b/mlflow.db", Path("/x")) == f"sqlite:///{tmp_path}/a b/mlflow.db"
    assert resolve_tracking_uri("sqlite:////abs/mlflow.db", Path("/x")) == "sqlite:////abs/mlflow.db"


def test_credentials_move_from_the_uri_to_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = resolve_tracking_uri("https://me:p%40ss@host:5000/mlflow", tmp_path)
    assert uri == "https://host:5000/mlflow"
    assert stores.os.environ["MLFLOW_TRACKING_USERNAME"] == "me"
    assert stores.os.environ["MLFLOW_TRACKING_PASSWORD"] == "p@ss"


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "sqlite://", "sqlite:///", "sqlite:///:memory:",
                                 "sqlite:///a.db?mode=ro", "ftp://me:secret@host", "http://", "mlflow.db"])  # fmt: skip
def test_other_forms_are_refused_with_a_remedy(uri: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"sqlite:////absolute") as caught:
        resolve_tracking_uri(uri, tmp_path)
    assert "secret" not in str(caught.value)


def test_databases_keep_their_uri(tmp_path: Path) -> None:
    uri = "postgresql+psycopg2://me:secret@db/mlflow"
    assert resolve_tracking_uri(uri, tmp_path) == uri


def test_artifacts_lie_beside_the_file() -> None:
    assert artifact_location("sqlite:////data/a b/mlflow.db", "x/y") == "file:///data/a%20b/mlartifacts/x~2Fy"
    assert artifact_location("http://host:5000", "x") is None


def test_the_ui_command_is_one_shell_command() -> None:
    words = shlex.split(ui_command("sqlite:////data/a b/mlflow.db", port=5001))
    assert words[1:4] == [sys.executable, "-m", "mlflow"]
    assert words[words.index("--backend-store-uri") + 1] == "sqlite:////data/a b/mlflow.db"
    assert words[words.index("--port") + 1] == "5001"
    assert shlex.split(ui_command("http://host:5000"))[-1] == "http://host:5000"
    assert "secret" not in ui_command("postgresql://me:secret@db/mlflow")
