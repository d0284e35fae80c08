"""One process at a time: the holder is named, its death frees the lock, waiting is logged once."""

import errno
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import pytest

from detector.errors import ConfigError
from runyard import locks
from runyard.locks import LockHeldError, held

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import os, sys, time
from pathlib import Path
from runyard.locks import held
with held(Path(sys.argv[1]), "running this sweep"):
    child = os.fork()  # as a data loader does
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds a lock, and the process id of its forked child."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            yield process, child
        finally:
            process.kill()
            os.kill(child, signal.SIGKILL)


def test_the_holder_is_named_and_its_death_frees_the_lock_though_its_forked_child_lives(tmp_path: Path) -> None:
    path = tmp_path / "new" / "driver.lock"
    with holder(path) as (process, child):
        expected = rf"another process is running this sweep \(process {process.pid} on \S+\)\. Wait for it, or stop it"
        with pytest.raises(LockHeldError, match=expected), held(path, "running this sweep"):
            pytest.fail("two holders")
        process.kill()
        process.wait()
        with held(path, wait_s=1.0):
            os.kill(child, 0)  # still there
            assert re.fullmatch(rf"process {os.getpid()} on \S+\n", path.read_text())


def test_a_thread_of_the_same_process_is_kept_out_too_and_waits(tmp_path: Path) -> None:
    order = []

    def second() -> None:
        with held(tmp_path / "lock", wait_s=20):
            order.append("second")

    thread = threading.Thread(target=second)
    with held(tmp_path / "lock"):
        with pytest.raises(LockHeldError), held(tmp_path / "lock", wait_s=0.2):
            pytest.fail("two holders")
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]


def test_waiting_for_ever_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "_SECONDS_BEFORE_LOG", 0.1)
    with holder(tmp_path / "lock") as (process, _):
        threading.Timer(1.5, process.kill).start()
        with caplog.at_level(logging.WARNING), held(tmp_path / "lock", "running this sweep", wait_s=None):
            assert process.poll() is not None
    assert caplog.text.count("waiting for it") == 1
    assert f"process {process.pid} on " in caplog.text


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="Choose a storage path"), held(tmp_path / "file" / "lock"):
        pytest.fail("no lock")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_said_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def no_locks(_descriptor: int) -> bool:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sys.modules[filelock.FileLock.__module__], "lock_fd_nonblocking", no_locks)
    entered = 0
    with caplog.at_level(logging.WARNING), held(tmp_path / "lock"):
        entered += 1
    assert entered == 1
    assert caplog.text.count("this file system has no locks") == 1
