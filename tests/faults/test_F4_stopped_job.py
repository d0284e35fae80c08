"""F4: `ray job stop`, then the head lost: the same command, submitted again, goes on from the run folders alone."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from runyard.runs.folder import RunFolder
from runyard.tracking.journal import effective_metrics, last_status

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]


class Head:
    """A head node of our own, with a dashboard that takes jobs."""

    def __init__(self, folder: Path) -> None:
        ports = free_ports(3)
        self.address = f"http://127.0.0.1:{ports[1]}"
        self._environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "ray.scripts.scripts",
                "start",
                "--head",
                "--block",
                f"--port={ports[0]}",
                f"--dashboard-port={ports[1]}",
                f"--ray-client-server-port={ports[2]}",
                "--num-cpus=2",
                "--object-store-memory=100000000",
                f"--temp-dir={folder}",
            ],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def answers(self) -> bool:
        assert self._process.poll() is None, "the head did not start"
        return self.job("list").returncode == 0

    def job(self, command: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        ray = [sys.executable, "-m", "ray.scripts.scripts", "job", command, "--address", self.address]
        return subprocess.run(
            [*ray, *arguments], cwd=ROOT, env=self._environment, capture_output=True, text=True, timeout=300
        )

    def submit(self, name: str, *entry_point: str) -> None:
        options = ["--no-wait", "--working-dir", ".", "--runtime-env", "cluster/runtime_env.yaml"]
        for _ in range(60):
            submitted = self.job("submit", *options, "--submission-id", name, "--", *entry_point)
            if "No available agent" not in submitted.stderr:  # a head takes jobs a little after it answers
                break
            time.sleep(1)
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr

    def status(self, name: str) -> str:
        told = self.job("status", name)
        assert told.returncode == 0, told.stdout + told.stderr
        states = ("SUCCEEDED", "FAILED", "STOPPED", "RUNNING", "PENDING")
        return next(state for state in states if state.lower() in told.stdout.lower())

    def kill(self) -> None:
        """SIGKILL to all of it at once, as when the machine goes."""
        for process in sorted(descendants(self._process.pid), reverse=True):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.kill()
        self._process.wait()


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def descendants(pid: int) -> set[int]:
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in listed.splitlines())}
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return family - {pid}


@pytest.fixture
def start_head(wait_until) -> Iterator[Callable[[], Head]]:
    heads: list[Head] = []
    # Paths of Ray's sockets may not be long.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:

        def start() -> Head:
            heads.append(Head(Path(folder) / str(len(heads))))
            wait_until(heads[-1].answers, timeout_s=120)
            return heads[-1]

        yield start
        for head in heads:
            head.kill()


def test_F4_a_sweep_goes_on_after_job_stop_and_after_the_head_is_lost(
    start_head: Callable[[], Head], tmp_path: Path, wait_until, last_step, events
) -> None:
    command = [
        "python",
        "experiments/ablate_iou_loss.py",
        "--smoke",
        "--rows",
        "baseline",
        "bce",
        "--storage",
        str(tmp_path),
        "--optim.epochs",
        "12",
    ]

    def folders() -> list[RunFolder]:
        return [RunFolder(path) for path in tmp_path.glob("smoke-ablation-*")]

    def unfinished_step() -> int:
        return max((last_step(folder) for folder in folders() if not folder.evaluations()), default=0)

    head = start_head()
    head.submit("first", *command)
    wait_until(lambda: unfinished_step() >= 6 or head.status("first") in ("FAILED", "SUCCEEDED"), timeout_s=300)
    head.job("stop", "first")
    assert head.status("first") == "STOPPED"
    stopped_at = {folder.root: last_step(folder) for folder in folders()}

    head.submit("second", *command)
    wait_until(
        lambda: unfinished_step() >= max(stopped_at.values()) + 6 or head.status("second") in ("FAILED", "SUCCEEDED"),
        timeout_s=300,
    )
    assert head.status("second") == "RUNNING"
    head.kill()

    head = start_head()
    head.submit("third", *command)
    wait_until(lambda: head.status("third") in ("FAILED", "STOPPED", "SUCCEEDED"), timeout_s=400)
    assert head.status("third") == "SUCCEEDED", head.job("logs", "third").stdout
    assert len(folders()) == 2
    starts = [[event.payload["start_step"] for event in events(folder, "start")] for folder in folders()]
    print("attempts began at", starts)
    assert max(start for each in starts for start in each) >= 4
    for folder in folders():
        assert last_status(folder.journal) == "FINISHED"
        assert [step for step, _ in effective_metrics(folder.journal)["train/loss"]] == list(range(1, 49))
        assert json.loads(folder.evaluations()[0].metrics.read_text())["val/images"] > 0
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    tracked = client.search_runs([client.get_experiment_by_name("runyard").experiment_id])
    assert Counter(run.info.status for run in tracked) == {"FINISHED": 3}
    assert Counter(run.data.tags["kind"] for run in tracked) == {"sweep": 1, "trial": 2}
