"""B35: `runyard ui` with a port that cannot be used or a store that shows nothing: one line, status 2, no server."""

import os
import shlex
import socket
from pathlib import Path

import pytest

from runyard import cli
from runyard.tracking import ui


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Command lines of servers that would have been started."""
    commands: list[list[str]] = []
    monkeypatch.setattr(os, "execvp", lambda _file, arguments: commands.append(shlex.split(arguments[-1])))
    return commands


@pytest.fixture
def storage(tracking_uri: str, tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.mark.parametrize("port", ["-1", "65536", "busy"])
def test_B35_a_bad_or_busy_port_is_an_error(storage: Path, started: list[list[str]], capsys, port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1]) if port == "busy" else port
        assert cli.main(["ui", "--storage", str(storage), "--port", number]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: port: ")
    assert f"(found {number})" in shown
    assert shown.count("\n") == 1
    assert started == []


def test_B35_port_0_and_a_busy_default_find_a_free_port(
    storage: Path, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(ui, "DEFAULT_PORT", taken.getsockname()[1])
        assert cli.main(["ui", "--storage", str(storage)]) == 0
        assert cli.main(["ui", "--storage", str(storage), "--port", "0"]) == 0
        ports = [int(words[words.index("--port") + 1]) for words in started]
        assert taken.getsockname()[1] not in ports
        assert min(ports) > 0
    assert cli.main(["ui", "--storage", str(storage)]) == 0
    assert int(started[-1][started[-1].index("--port") + 1]) == ui.DEFAULT_PORT


@pytest.mark.parametrize("problem", ["does not exist", "is read-only", "found a folder"])
def test_B35_a_store_that_shows_nothing_is_an_error(
    tmp_path: Path, started: list[list[str]], capsys, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    if problem == "found a folder":
        (tmp_path / "mlflow.db").mkdir()
    elif problem == "is read-only":
        (tmp_path / "mlflow.db").write_bytes(b"SQLite format 3\0")
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))  # root may write
    assert cli.main(["ui", "--storage", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {tmp_path / 'mlflow.db'}: ")
    assert problem in shown
    assert started == []
    assert not (tmp_path / "mlflow.db").is_file() or problem == "is read-only"


def test_B35_a_server_that_is_away_is_an_error(started: list[list[str]], capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert cli.main(["ui", "--tracking-uri", uri]) == 2
    assert "cannot be reached" in capsys.readouterr().err
    assert started == []
