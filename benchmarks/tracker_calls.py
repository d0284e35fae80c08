"""P13: cost of tracking for the training loop, with a tracking server that answers and with one that does not.

The loop only appends to its journal; a thread (with Ray: the driver's process) carries the journal to the server. So
the time inside tracker calls is the time in which the training thread appends. What the uploading thread computes
meanwhile is reported too: with the plain launcher it may compete for Python's lock.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from benchmarks.rows import Row
from benchmarks.settings import Settings
from benchmarks.small_run import named, small_spec
from detector.engine import TrainingEngine
from runyard.runs.prepare import prepare
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import Journal
from runyard.tracking.mlflow_tracker import MlflowTracker
from runyard.tracking.replay import JournalReplayer
from runyard.tracking.runs import TrackedRun
from runyard.tracking.uploader import JournalUploader
from runyard.training import worker
from runyard.training.local import LocalContext

BLOCK_STEPS = 10
"""As many as lie between two lines in the journal by default."""


def measure(settings: Settings) -> list[Row]:
    """P13."""
    blocks = settings.repeats(8)
    side = 64 if settings.quick else 160
    rows = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        spec = small_spec(folder, steps=(blocks + 2) * BLOCK_STEPS, side_px=side)
        with mlflow_server(folder) as healthy:
            for name, uri, bound in (("healthy", healthy, 0.001), ("dead", f"http://127.0.0.1:{free_port()}", 0.005)):
                shares, append_s, uploading = tracked_run(named(spec, name), uri)
                rows.append(
                    Row(
                        key="P13",
                        what=f"time in tracker calls over step time, server {name}",
                        size=settings.describe(f"ResNet-18, 8 x {side}x{side}, plain launcher", full=True),
                        kind="value",
                        unit="share",
                        ours=shares[:blocks],
                        goal=settings.goal(bound, at_least=False),
                        goal_text=f"at most {100 * bound:g} %",
                        note=f"{1e6 * append_s:.0f} microseconds a line, one line in {BLOCK_STEPS} steps; "
                        f"the uploading thread computed {100 * uploading:.2g} % of the time",
                    )
                )
    return rows


def tracked_run(spec: ExperimentSpec, uri: str) -> tuple[list[float], float, float]:
    """Train a run while its replayer uploads.

    Returns, for every block of steps, the share of the time in which the training thread was inside the journal; the
    seconds that one line took in the median; and the processor time of the uploading thread over all that time.
    """
    prepared = prepare(spec)
    clock = _Clock()
    run = TrackedRun(identity=prepared.folder.root.name, name=prepared.folder.root.name)
    with (
        mock.patch.object(Journal, "append", clock.around_append(Journal.append)),
        mock.patch.object(JournalUploader, "upload", clock.around_upload(JournalUploader.upload)),
        mock.patch.object(worker, "TrainingEngine", clock.engine()),
    ):
        # A round a second, ten times as often as in earnest: an upper bound.
        replayer = JournalReplayer(lambda: MlflowTracker(uri, "benchmarks"), poll_s=1.0)
        replayer.follow(prepared.folder.journal, run)
        try:
            worker.train(prepared.spec, prepared.folder, LocalContext(use_gpu=None))
        finally:
            replayer.close(5.0)
    return clock.shares(), clock.append_s, clock.uploading_s / max(clock.training_s, 1e-9)


class _Clock:
    """Clock of the journal's, the uploader's and the engine's calls."""

    def __init__(self) -> None:
        self.uploading_s = 0.0
        self._appending_s = 0.0
        self._lines_s: list[float] = []
        self._marks: list[tuple[float, float]] = []  # at the start of every step: the time, time spent appending

    @property
    def training_s(self) -> float:
        """Time from the first step's start to the last one's."""
        return self._marks[-1][0] - self._marks[0][0] if self._marks else 0.0

    @property
    def append_s(self) -> float:
        """Median time of one line of the journal in seconds."""
        return median(self._lines_s)

    def shares(self) -> list[float]:
        """Shares of every whole block of steps after the first."""
        ends = self._marks[::BLOCK_STEPS]
        pairs = pairwise(ends[1:])
        return [(after[1] - before[1]) / (after[0] - before[0]) for before, after in pairs]

    def around_append(self, append: Any) -> Any:
        def timed(journal: Journal, *arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return append(journal, *arguments)
            finally:
                self._lines_s.append(time.perf_counter() - started)
                self._appending_s += self._lines_s[-1]

        return timed

    def around_upload(self, upload: Any) -> Any:
        def timed(uploader: JournalUploader, **options: Any) -> Any:
            started = time.thread_time()
            try:
                return upload(uploader, **options)
            finally:
                self.uploading_s += time.thread_time() - started

        return timed

    def engine(self) -> type[TrainingEngine]:
        clock = self

        class ClockedEngine(TrainingEngine):
            """Record the time at which each step begins."""

            def step(self, *arguments: Any, **options: Any) -> Any:
                clock._marks.append((time.perf_counter(), clock._appending_s))
                return super().step(*arguments, **options)

        return ClockedEngine


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """The address of an MLflow server of our own on this machine, over SQLite."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--default-artifact-root",
        f"{folder}/artifacts",
    ]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    uri = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{uri}/health", server, folder / "server.log")
        yield uri
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def _wait_for(address: str, server: "subprocess.Popen[bytes]", log: Path, patience_s: float = 180.0) -> None:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"MLflow's server does not answer: {log.read_text()[-1000:]}")


def free_port() -> int:
    """One that nobody listens on at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
