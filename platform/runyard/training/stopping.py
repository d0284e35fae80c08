"""SIGTERM, SIGHUP and Ctrl-C while a run is trained: its workers write a checkpoint and end, then so does the driver.

The request is a file in the run's folder, because workers are other processes, often on other machines, and that
folder is what they share. Every worker looks for it at every step (one `stat`); what they saw travels with the sums
that a step exchanges anyway, so that all of them stop after the same one (`detector.engine`). Nothing waits for it.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from runyard.failures import Terminated, TrainingStoppedError
from runyard.runs.folder import RunFolder

GRACE_S = 60.0
"""After so long, or at the second signal, the run ends where it stands. NFS may keep a new file from other machines
for 30 s; Kubernetes kills after 30 s by default, `ray job stop` after 3 s ($RAY_JOB_STOP_WAIT_TIME_S)."""

_log = logging.getLogger(__name__)


def request_stop(folder: RunFolder) -> None:
    """Ask the workers of a run to write a checkpoint and to end."""
    folder.stop_request.touch()


def withdraw_stop(folder: RunFolder) -> None:
    """Remove an earlier request to stop, if there is one."""
    folder.stop_request.unlink(missing_ok=True)


@contextmanager
def stops_on_signals(folder: RunFolder, *, first_rank: bool = True, grace_s: float = GRACE_S) -> Iterator[None]:
    """While entered, SIGTERM, SIGHUP and Ctrl-C ask the run to stop; an earlier request is withdrawn on entry.

    A run that stops on any request, and one that ends otherwise after a signal, well or not, ends in KeyboardInterrupt:
    `Terminated`, unless it was Ctrl-C. After a normal end the request is withdrawn. Signals that the process ignores
    stay ignored. Outside the main thread no signal can be caught; `request_stop` works there too.

    Args:
        first_rank: this process withdraws requests; one of several that share the folder.
    """
    if first_rank:
        withdraw_stop(folder)
    received: list[int] = []
    timer = threading.Timer(grace_s, lambda: os.kill(os.getpid(), received[0]))
    timer.daemon = True

    def handle(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        if len(received) > 1:
            raise _interruption(received)
        try:
            request_stop(folder)
        except OSError as error:  # a full disk must not keep a process from ending
            raise _interruption(received) from error
        _log.warning("stopping: the workers write a checkpoint; a second signal ends the run at once")
        timer.start()

    in_main_thread = threading.current_thread() is threading.main_thread()
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if in_main_thread else ()
    caught = [signum for signum in signals if signal.getsignal(signum) is not signal.SIG_IGN]
    earlier = {signum: signal.signal(signum, handle) for signum in caught}
    try:
        yield
    except TrainingStoppedError as error:
        raise _interruption(received) from error
    except Exception as error:
        if not received:
            raise
        _log.warning("the run failed after it was asked to stop: %s: %s", type(error).__name__, error)
        raise _interruption(received) from error
    finally:
        timer.cancel()
        for signum, handler in earlier.items():
            signal.signal(signum, handler)
    if first_rank:
        withdraw_stop(folder)
    if received:
        raise _interruption(received)


def _interruption(received: list[int]) -> KeyboardInterrupt:
    return KeyboardInterrupt() if received[:1] == [signal.SIGINT] else Terminated()
