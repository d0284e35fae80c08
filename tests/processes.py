"""Programs in processes of their own, forked from a server that has imported torch, MLflow and the launcher once.

A fresh Python takes four seconds of a core to import them. The server of one test session is shared by all its tests.
"""

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

PRELOADED = ["runyard.training.local", "runyard.tracking.mlflow_tracker"]


def forkserver() -> ForkServerContext:
    """The context whose processes are forked from the server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class Forked:
    """One Python program with its output; the part of subprocess.Popen's interface that tests use.

    Args:
        arguments: as for `python`: a script with its arguments, or -m and a module's name with its arguments.
        environment: all of the program's environment variables.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        # The file has a name, since the program inherits nothing from this process.
        self._output = tempfile.NamedTemporaryFile()  # noqa: SIM115 (open for as long as the program runs)
        given = (list(arguments), dict(environment), self._output.name)
        self._process = forkserver().Process(target=_run, args=given)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while the program runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """As `returncode`."""
        return self.returncode

    def send_signal(self, signum: int) -> None:
        """Send a signal, unless the program has ended."""
        if self.returncode is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """Send SIGKILL, unless the program has ended."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Wait for the end; standard output and standard error as one text. TimeoutExpired as subprocess raises it."""
        self._process.join(timeout)
        if self.returncode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired("a forked program", timeout)
        self._output.seek(0)
        return self._output.read().decode(), None


def _run(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """Become the program."""
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.clear()
    os.environ.update(environment)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        # Imported by the server; Python would warn that it is run a second time.
        sys.modules.pop(arguments[1], None)
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        # As Python does for a script.
        sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
        runpy.run_path(arguments[0], run_name="__main__")


def rank_environment(world_size: int) -> list[dict[str, str]]:
    """The environment variables that torchrun would give to each rank, with a port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{"RANK": str(rank), **shared} for rank in range(world_size)]
