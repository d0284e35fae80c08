"""Runs in processes of their own that can be killed at a given step, and the files that they leave."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from detector.files import write_json
from runyard.runs.folder import RunFolder
from runyard.spec import ExperimentSpec, to_dict
from runyard.tracking.journal import Record, effective_metrics, read
from runyard.training.local import main
from tests.processes import Forked, forkserver, rank_environment

# The tracking server with faults on demand, and what it is made of.
from tests.runyard.tracking.conftest import (  # noqa: F401
    _server,
    impatient,
    server,
    tracking_uri,
)

ROOT = Path(__file__).resolve().parents[2]
CURVES = ("loss", "loss_cls", "loss_box", "loss_iou", "gradient_norm", "learning_rate", "epoch")
"""Everything that is logged at a step, times excepted."""


@dataclass(frozen=True)
class Trajectory:
    """Everything that two runs must share to count as the same run."""

    curves: dict[str, list[tuple[int, float]]]
    tensors: dict[str, Tensor]
    """Weights, optimiser state and random state of the newest checkpoint."""
    metrics: dict[str, float]

    @classmethod
    def from_folder(cls, folder: RunFolder) -> "Trajectory":
        curves = effective_metrics(folder.journal)
        (evaluation,) = folder.root.glob("evaluation/*/metrics.json")
        metrics = json.loads(evaluation.read_text())
        del metrics["val/images_per_s"]
        return cls(
            {name: curves[f"train/{name}"] for name in CURVES},
            load_file(folder.checkpoints()[0] / "tensors.safetensors"),
            metrics,
        )

    def assert_equal(self, other: "Trajectory") -> None:
        """Bit for bit, and every step logged once."""
        assert self.curves == other.curves
        assert self.tensors.keys() == other.tensors.keys()
        different = [name for name, tensor in self.tensors.items() if not torch.equal(tensor, other.tensors[name])]
        assert different == []
        assert self.metrics == other.metrics


class Runs:
    """Starts plain-torch runs in processes of their own, forked from a server that has imported all they need."""

    def __init__(self) -> None:
        self._started: list[BaseProcess] = []
        self._commands: list[subprocess.Popen[str] | Forked] = []

    def folder(self, spec: ExperimentSpec) -> RunFolder:
        assert spec.runtime.storage is not None
        assert spec.runtime.name is not None
        return RunFolder(spec.runtime.storage / spec.runtime.name)

    def spec_file(self, spec: ExperimentSpec) -> Path:
        path = self.folder(spec).root.with_suffix(".spec.json")
        write_json(path, to_dict(spec), indent=2)
        return path

    def start(self, spec: ExperimentSpec) -> BaseProcess:
        process = forkserver().Process(target=main, args=([str(self.spec_file(spec))],))
        process.start()
        self._started.append(process)
        return process

    def finish(self, spec: ExperimentSpec) -> Trajectory:
        """Trains, or goes on training, to the end."""
        process = self.start(spec)
        process.join()
        assert process.exitcode == 0
        return Trajectory.from_folder(self.folder(spec))

    def kill_after_step(self, spec: ExperimentSpec, step: int, then_wait_s: float = 0.0) -> int:
        """Starts the run and sends SIGKILL once `step` is logged; returns the newest step that is logged by then."""
        process = self.start(spec)
        folder = self.folder(spec)
        _wait_until(lambda: _last_step(folder) >= step or not process.is_alive())
        time.sleep(then_wait_s)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run ended before it was killed"
        return _last_step(folder)

    def command(self, arguments: Sequence[str | Path], **environment: str) -> Forked:
        """A Python command, its output kept, in a process forked from the server."""
        process = Forked([str(argument) for argument in arguments], _environment() | environment)
        self._commands.append(process)
        return process

    def fresh_command(self, arguments: Sequence[str | Path]) -> "subprocess.Popen[str]":
        """A Python command, its output kept, in a fresh interpreter, as a user starts it."""
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._commands.append(process)
        return process

    def ranks(self, spec: ExperimentSpec, *, script: Path | None = None) -> list[Forked]:
        """The run on two gloo processes, as torchrun would start them but without its supervision."""
        program: list[str | Path] = [script] if script else ["-m", "runyard.training.local"]
        return [self.command([*program, self.spec_file(spec)], **rank) for rank in rank_environment(world_size=2)]

    def close(self) -> None:
        for command in self._commands:
            if command.poll() is None:
                command.kill()
                command.communicate()
        for process in self._started:
            if process.is_alive():
                process.kill()
            process.join()


def _environment() -> dict[str, str]:
    """This process's environment variables, with the tree's sources on the path."""
    return os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}


def _wait_until(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"nothing happened for {timeout_s} s"
        time.sleep(0.01)


def _last_step(folder: RunFolder) -> int:
    """The newest step that the newest attempt has logged."""
    step = 0
    for record in read(folder.journal):
        if record.kind in ("metrics", "rewind"):
            step = record.payload["step"]
    return step


def _only_run(storage: Path) -> RunFolder:
    """The one run of a storage folder; a folder that does not exist where it has not been begun."""
    (folder,) = [path.parent for path in storage.glob("*/spec.json")] or [storage / "not-begun"]
    return RunFolder(folder)


def _events(folder: RunFolder, name: str) -> list[Record]:
    """The events of one kind, in order."""
    return [record for record in read(folder.journal) if record.kind == "event" and record.payload["event"] == name]


@pytest.fixture
def runs() -> Iterator[Runs]:
    """Processes still running at the end of the test are killed."""
    started = Runs()
    yield started
    started.close()


@pytest.fixture
def wait_until() -> Callable[..., None]:
    return _wait_until


@pytest.fixture
def last_step() -> Callable[[RunFolder], int]:
    return _last_step


@pytest.fixture
def only_run() -> Callable[[Path], RunFolder]:
    return _only_run


@pytest.fixture
def events() -> Callable[[RunFolder, str], list[Record]]:
    return _events


@pytest.fixture
def trajectory() -> Callable[[RunFolder], Trajectory]:
    return Trajectory.from_folder
