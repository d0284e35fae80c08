"""Locks between processes: one process at a time writes a run, a sweep, a journal, or creates a tracking store.

A lock is a small file that names its holder. The kernel releases it when the holder dies; forked children (the workers
of a data loader) do not keep it. The file itself stays: removing it would let two processes hold two files of one name.
"""

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from detector.errors import ConfigError

_NO_LOCKS = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK})
_SECONDS_BEFORE_LOG = 2.0
_POLL_S = 0.1
_MAX_HOLDER_LENGTH = 200

_log = logging.getLogger(__name__)


class LockHeldError(ConfigError):
    """Another process holds the lock; the message names it."""


@contextmanager
def held(path: Path, activity: str = "using this folder", *, wait_s: float | None = 0.0) -> Iterator[None]:
    """Hold the lock file `path` for the block; missing folders are created.

    Args:
        activity: what the holder is doing, for the message: "running this sweep".
        wait_s: how long to wait for another holder in seconds; None waits for ever, with one log line.

    Raises LockHeldError, naming the holder's process and host, if another process (or another thread of this one) still
    holds it; ConfigError if the file cannot be created. On a file system without locks a warning is logged and the
    block runs unprotected.
    """
    # Without the soft fallback: an existence lock would outlive a killed process.
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock, path, activity, wait_s)
        with suppress(OSError):  # a full disk costs only the name of the holder
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
    except Timeout:
        raise LockHeldError(
            f"another process is {activity} ({_holder(path)})", file=path.parent, remedy="Wait for it, or stop it"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            remedy = "Choose a storage path that this user may write to"
            raise ConfigError(f"cannot be locked: {error.strerror}", file=path, remedy=remedy) from error
        _log.warning("%s: this file system has no locks (%s); start no second process on it", path, error.strerror)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, path: Path, activity: str, wait_s: float | None) -> None:
    if wait_s is not None:
        lock.acquire(timeout=wait_s, poll_interval=_POLL_S)
        return
    try:
        lock.acquire(timeout=_SECONDS_BEFORE_LOG, poll_interval=_POLL_S)
    except Timeout:
        _log.warning("%s: another process is %s (%s); waiting for it", path.parent, activity, _holder(path))
        lock.acquire(timeout=-1, poll_interval=1.0)


def _holder(path: Path) -> str:
    """The holder as its lock file names it: "process 4711 on node-3"."""
    try:
        with path.open("rb") as stream:
            text = stream.read(_MAX_HOLDER_LENGTH).decode("utf-8", "replace").strip()
    except OSError:
        text = ""
    return text or "unknown process"
