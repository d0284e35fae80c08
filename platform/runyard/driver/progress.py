"""What a person sees while a run goes on: the journal, followed and told in short lines."""

import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console

from runyard.tracking.journal import Record, follow, read

SECONDS_BETWEEN_LINES = 5.0


class BackgroundPrinter(ABC):
    """A thread that prints what `_run` tells of, from entering to leaving."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=5.0)

    @abstractmethod
    def _run(self) -> None:
        """Until `_stop` is set."""


class ProgressPrinter(BackgroundPrinter):
    """Prints a line every few seconds, and every evaluation and restart at once."""

    def __init__(self, journal: Path, console: Console | None = None) -> None:
        super().__init__(console or Console())
        self._journal = journal
        self._after = max((record.seq for record in read(journal)), default=0)
        self._total_steps = 0
        self._first: tuple[float, int] | None = None
        self._last_line = 0.0

    def _run(self) -> None:
        for records in follow(self._journal, self._after, self._stop):
            for record in records:
                self._tell(record)

    def _tell(self, record: Record) -> None:
        payload = record.payload
        if record.kind == "event" and payload.get("event") == "start":
            self._total_steps = payload["total_steps"]
            self._first = None
            start = f" from step {payload['start_step']}" if payload["start_step"] else ""
            self._console.print(f"  {payload['workers']} worker(s), {self._total_steps} steps{start}", style="dim")
        elif record.kind == "event":
            told = payload.get("message") or {name: value for name, value in payload.items() if name != "details"}
            self._console.print(f"  {told}", style="yellow", markup=False, soft_wrap=True)
        elif record.kind == "metrics" and "val/images" in payload["values"]:
            values = payload["values"]
            shown = ", ".join(
                f"{k} {100 * values[f'val/{k}']:.1f}" for k in ("AP", "AP50", "AP75") if f"val/{k}" in values
            )
            self._console.print(f"  evaluated {values['val/images']:.0f} images at step {payload['step']}: {shown}")
        elif record.kind == "metrics" and "train/loss" in payload["values"]:
            self._training(record)

    def _training(self, record: Record) -> None:
        step, values = record.payload["step"], record.payload["values"]
        if self._first is None:
            self._first = (record.time_s, step)
        now = time.monotonic()
        if now - self._last_line < SECONDS_BETWEEN_LINES and step != self._total_steps:
            return
        self._last_line = now
        elapsed, done = record.time_s - self._first[0], step - self._first[1]
        left = f", {_clock(elapsed / done * (self._total_steps - step))} left" if done else ""
        rate = f", {values['train/images_per_s']:.1f} images/s" if "train/images_per_s" in values else ""
        self._console.print(
            f"  step {step}/{self._total_steps}, epoch {values['train/epoch']:.1f}, loss {values['train/loss']:.3f} "
            f"(class {values['train/loss_cls']:.3f}, box {values['train/loss_box']:.3f}, "
            f"IoU {values['train/loss_iou']:.3f}){rate}{left}",
            highlight=False,
            soft_wrap=True,
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
