"""Turns of two training loops in different processes: a loop stops every few steps until it may go on.

The loops are the real ones (`runyard.training.worker.train`), loader, journal and all. Only the engine is replaced by
one that waits before the first step of every block; what passes between the start of a block and the start of the next
is the loop's time for that many steps. Messages are files, because the loops may be anybody's processes.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from detector.data.batching import Batch
from detector.engine import StepResult, TrainingEngine
from runyard.context import TrainContext
from runyard.runs.folder import RunFolder
from runyard.spec import ExperimentSpec

_LOOK_S = 0.005


@dataclass(frozen=True)
class Pace:
    """Folder of the messages, and length of a block."""

    folder: Path
    steps: int

    def go(self, block: int) -> None:
        """Let the loop begin a block."""
        (self.folder / f"go-{block}").touch()

    def wait_for_start(self, block: int) -> None:
        """Wait, in the loop, until the block may begin."""
        while not (self.folder / f"go-{block}").exists():
            time.sleep(_LOOK_S)

    def report_time(self, block: int, seconds: float) -> None:
        """Report, from the loop, the time that the block has taken."""
        partial = self.folder / f".took-{block}"
        partial.write_text(json.dumps(seconds))
        os.replace(partial, self.folder / f"took-{block}")

    def took(self, block: int, failed: Callable[[], bool], patience_s: float = 900.0) -> float:
        """Wait for the time of a block, in seconds a step; RuntimeError where the loop has failed."""
        answer = self.folder / f"took-{block}"
        deadline = time.monotonic() + patience_s
        while not answer.exists():
            if failed() or time.monotonic() > deadline:
                raise RuntimeError(f"no answer from the training loop that watches {self.folder.name}")
            time.sleep(_LOOK_S)
        seconds: float = json.loads(answer.read_text())
        return seconds / self.steps


class PacedEngine(TrainingEngine):
    """A training engine that waits before every block of steps; `pace` is set before it is made."""

    pace: Pace

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._calls = 0
        self._started = 0.0

    def step(self, micro_batches: Sequence[Batch], learning_rate: float, **options: Any) -> StepResult:
        """Make a step as the real engine does."""
        block, position = divmod(self._calls, self.pace.steps)
        if position == 0:
            if block > 0:
                self.pace.report_time(block - 1, time.perf_counter() - self._started)
            self.pace.wait_for_start(block)
            self._started = time.perf_counter()
        self._calls += 1
        return super().step(micro_batches, learning_rate, **options)


def train_paced(spec: ExperimentSpec, folder: RunFolder, context: TrainContext, pace: Pace) -> None:
    """The training loop at the given pace. The last block is not reported: it ends with the run."""
    from runyard.training import worker

    engine = type("PacedEngine", (PacedEngine,), {"pace": pace})
    with mock.patch.object(worker, "TrainingEngine", engine):
        worker.train(spec, folder, context)
