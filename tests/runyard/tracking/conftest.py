"""Real tracking stores: a SQLite file initialised once and copied, and MLflow's own server with faults on demand."""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before any test module imports MLflow directly: this sets what has to be set first.
from runyard.tracking import mlflow_tracker
from runyard.tracking.mlflow_tracker import MlflowTracker


def in_four_processes(work: Callable[[], object]) -> list[int]:
    """Exit statuses of four processes that do the same at once, 0 where it raised nothing."""
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work()
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    return [os.waitpid(child, 0)[1] for child in children]


@pytest.fixture(scope="session")
def _created_database() -> Iterator[tuple[Path, list[int]]]:
    # Creating the tables syncs hundreds of times: seconds on a quiet disk, half a minute on a busy one.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        path = Path(folder) / "new" / "empty.db"
        statuses = in_four_processes(lambda: MlflowTracker(f"sqlite:///{path}", "first").experiment_id())
        yield path, statuses


@pytest.fixture(scope="session")
def empty_database(_created_database: tuple[Path, list[int]]) -> Path:
    """A store without runs, created by four processes that opened it at the same time."""
    return _created_database[0]


@pytest.fixture(scope="session")
def empty_database_exits(_created_database: tuple[Path, list[int]]) -> list[int]:
    """Exit statuses of those four processes."""
    return _created_database[1]


@pytest.fixture
def tracking_uri(empty_store: Path, tmp_path: Path) -> str:
    """A SQLite store of the test's own."""
    path = tmp_path / "store" / "mlflow.db"
    path.parent.mkdir()
    shutil.copy(empty_store, path)
    return f"sqlite:///{path}"


class FaultyServer:
    """MLflow's server in this process; `fault` says how it misbehaves, `requests` counts what reached it.

    A request that hangs is carried out when the fault is over, as servers do, though nobody waits for its answer.
    """

    def __init__(self, application: Any) -> None:
        self._application = application
        self._server: Any = None
        self.port = 0
        self.fault: str | None = None
        self.fault_at = ""
        """Only requests whose path contains it misbehave."""
        self.requests = 0
        self.start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, *_: object) -> None:
                pass

        self._server = make_server("127.0.0.1", self.port, self._answer, threaded=True, request_handler=Quiet)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.requests += 1
        if self.fault_at not in environ["PATH_INFO"]:
            return self._application(environ, start_response)  # type: ignore[no-any-return]
        if self.fault == "hangs":
            deadline = time.monotonic() + 20
            while self.fault == "hangs" and time.monotonic() < deadline:
                time.sleep(0.02)
        statuses = {
            "fails": "500 Internal Server Error",
            "wants credentials": "401 Unauthorized",
            "forbids": "403 Forbidden",
        }
        if self.fault in statuses:
            start_response(statuses[self.fault], [("Content-Type", "text/plain")])
            return [b"no"]
        if self.fault == "refuses its name":
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"Invalid Host header - possible DNS rebinding attack detected"]
        return self._application(environ, start_response)  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def _server(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyServer]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{folder / 'mlflow.db'}")
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "mlflow-artifacts:/")
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(folder / "artifacts"))
        patch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
        from mlflow.server import app

        server = FaultyServer(app)
        yield server
        server.stop()


@pytest.fixture
def server(_server: FaultyServer) -> Iterator[FaultyServer]:
    """The server, well again after the test."""
    yield _server
    _server.fault, _server.fault_at = None, ""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are given up after a second."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(mlflow_tracker, "_ARTIFACT_TIMEOUT_S", 1)
