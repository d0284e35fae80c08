"""B26, B33: what can never be an MLflow store is refused at once; a dead one costs the end of a run next to nothing."""

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine.default import DefaultDialect

from runyard.tracking import replay
from runyard.tracking.journal import Journal
from runyard.tracking.mlflow_tracker import MlflowTracker
from runyard.tracking.replay import DEAD_S, LOST_S, JournalReplayer
from runyard.tracking.runs import TrackedRun
from runyard.tracking.stores import (
    TrackingRefusedError,
    TrackingUnavailableError,
    check_store,
    resolve_tracking_uri,
)
from runyard.tracking.ui import require_store

RUN = TrackedRun("run-0123", "run")


@contextmanager
def web_server(status: int, content: bytes, kind: str) -> Iterator[str]:
    """A web server that answers everything alike; its URI."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as found:
        threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{found.server_port}"
        finally:
            found.shutdown()


@contextmanager
def raw_server(greeting: bytes) -> Iterator[str]:
    """A TCP server that is not a web server; without a greeting it accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        connections = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                connections.append(connection)
                if greeting:
                    connection.sendall(greeting)
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["a folder", "a pipe or device", "other content"])
def test_B26_what_is_not_a_database_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mlflow.db"
    if kind == "a folder":
        path.mkdir()
    elif kind == "other content":
        path.write_text("no database" * 1000)
    else:
        os.mkfifo(path)
    uri = resolve_tracking_uri(None, tmp_path)
    began_s = time.monotonic()
    for use in (lambda: check_store(uri), MlflowTracker(uri, "experiment").experiment_id):
        with pytest.raises(TrackingRefusedError, match=f"expected a SQLite file, found {kind}"):
            use()
    assert time.monotonic() - began_s < 5


def test_B26_a_read_only_database_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"SQLite format 3\0" + bytes(100))
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))  # root may write
    with pytest.raises(TrackingRefusedError, match="read-only"):
        check_store(resolve_tracking_uri(None, tmp_path))


def test_B26_a_file_that_does_not_exist_yet_is_fine_and_is_not_created(tmp_path: Path) -> None:
    assert check_store(resolve_tracking_uri(None, tmp_path / "new")) is False
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "content", "kind"),
    [
        (404, b"<html>no</html>", "text/html"),
        (200, b"<html>log in</html>", "text/html"),
        (200, b"[1]", "application/json"),
    ],
)
def test_B33_a_web_server_that_is_not_mlflow_is_refused_at_once(status: int, content: bytes, kind: str) -> None:
    with web_server(status, content, kind) as uri:
        with pytest.raises(TrackingRefusedError, match=rf"found another web server \(status {status}, {kind}\)"):
            check_store(uri)
        with pytest.raises(TrackingRefusedError, match="expected an MLflow server, found another web server"):
            MlflowTracker(uri, "experiment").experiment_id()


def test_B33_a_server_without_http_and_https_without_tls_are_refused() -> None:
    with raw_server(b"SSH-2.0-x\r\n") as uri, pytest.raises(TrackingRefusedError, match="found no HTTP"):
        check_store(uri)
    with web_server(200, b"", "text/html") as uri, pytest.raises(TrackingRefusedError, match="does not speak TLS"):
        check_store(uri.replace("http:", "https:"))


def test_B33_a_store_that_may_come_back_is_not_refused(server) -> None:
    assert check_store(server.uri) is True
    for fault, answers in (("fails", False), ("wants credentials", True), (None, True)):
        server.fault = fault
        assert check_store(server.uri) is answers
    assert check_store(closed_port()) is False
    began_s = time.monotonic()
    with raw_server(b"") as uri:
        assert check_store(uri) is False
    assert time.monotonic() - began_s < 5


def journal_of(folder: Path, steps: range = range(5)) -> Path:
    with Journal(folder / "journal.jsonl") as journal:
        for step in steps:
            journal.append("metrics", {"step": step, "values": {"train/loss": 1.0}})
    return folder / "journal.jsonl"


def test_B33_a_server_that_was_dead_all_along_costs_the_end_of_a_run_no_wait(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = closed_port()
    replayer = JournalReplayer(lambda: MlflowTracker(uri, "experiment"), first_retry_s=0.1)
    replayer.follow(journal_of(tmp_path), RUN)
    while "cannot be reached (connection refused)" not in caplog.text:
        time.sleep(0.02)
    began_s = time.monotonic()
    assert replayer.close() == 5
    assert time.monotonic() - began_s < DEAD_S / 2


def test_B33_a_server_that_died_late_is_waited_for_a_stated_time(
    server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "LOST_S", 3.0)
    assert LOST_S <= 30
    path = journal_of(tmp_path)
    replayer = JournalReplayer(lambda: MlflowTracker(server.uri, "dies late"), poll_s=0.05, first_retry_s=0.1)
    replayer.follow(path, RUN)
    deadline_s = time.monotonic() + 60
    while replayer._left():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    server.fault = "fails"
    journal_of(tmp_path, range(5, 7))
    lines: list[str] = []
    began_s = time.monotonic()
    assert replayer.close(say=lines.append) == 2
    assert 2 < time.monotonic() - began_s < 10
    assert lines == ["the tracking store does not answer; records left: 2; waiting at most 3 s"]


class _Connection:
    def close(self) -> None:
        pass


class GreetingDriver:
    """A database driver that connects over TCP and waits for the server's greeting, without a time-out of its own."""

    paramstyle = "format"

    @staticmethod
    def connect(host: str, port: int, **_: object) -> _Connection:
        with socket.create_connection((host, port)) as connection:
            if not connection.recv(1):
                raise OSError("no greeting")
        return _Connection()


class GreetingDialect(DefaultDialect):
    @classmethod
    def import_dbapi(cls) -> type[GreetingDriver]:  # type: ignore[override]
        return GreetingDriver


class FileDialect(SQLiteDialect_pysqlite):
    """A database that is not reached by a SQLite URI."""

    supports_statement_cache = True


@pytest.fixture
def drivers() -> Iterator[None]:
    names = {"postgresql.greeting": GreetingDialect, "postgresql.file": FileDialect}
    for name, dialect in names.items():
        registry.register(name, __name__, dialect.__name__)
        registry.impls[name] = lambda dialect=dialect: dialect
    yield
    for name in names:
        del registry.impls[name]


@pytest.mark.usefixtures("drivers")
def test_B33_a_database_that_does_not_answer_is_found_before_mlflow_waits_for_it() -> None:
    """MLflow tries a database's first connection again for 100 s, which is left to the replayer's thread."""

    def database(uri: str) -> str:
        return uri.replace("http:", "postgresql+greeting:") + "/mlflow"

    began_s = time.monotonic()
    assert check_store(database(closed_port())) is False
    with raw_server(b"") as uri:
        assert check_store(database(uri)) is False
        with pytest.raises(TrackingUnavailableError, match="cannot be reached"):
            require_store(database(uri))
    with raw_server(b"R") as uri:
        assert check_store(database(uri)) is True
        require_store(database(uri))
    assert time.monotonic() - began_s < 10


@pytest.mark.usefixtures("drivers")
def test_B33_a_database_that_answers_gets_its_experiment(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_database, tmp_path / "store.db")
    uri = resolve_tracking_uri(f"postgresql+file:///{tmp_path / 'store.db'}", tmp_path)
    assert check_store(uri) is True
    tracker = MlflowTracker(uri, "in a database")
    assert tracker.known_experiment_id is None
    number = tracker.experiment_id()
    assert tracker.known_experiment_id == number
    assert MlflowTracker(uri, "in a database").experiment_id() == number
