"""Progress of a sweep on the terminal: every change of a job at once, and a line every few seconds in between."""

import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console

from runyard.driver.jobs import Job
from runyard.tracking.journal import JournalReader, Record

SECONDS_BETWEEN_LINES = 5.0
_VERBS = {"train": "trains", "infer": "stores its outputs", "score": "is scored"}
_POLL_S = 0.5


class _BackgroundPrinter(ABC):
    """A thread that prints, from entering to leaving."""

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
    def on_state(self, job: Job, state: str, error: str) -> None:
        """A job is running, finished or failed."""

    @abstractmethod
    def _run(self) -> None:
        """Print until `_stop` is set."""

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(f"  {text}", style=style or None, markup=False, highlight=False, soft_wrap=True)


class RunProgress(_BackgroundPrinter):
    """Progress of one training: every evaluation and restart at once, losses every few seconds."""

    def __init__(self, job: Job, console: Console) -> None:
        super().__init__(console)
        self._reader = JournalReader(job.journal)
        self._reader.poll()  # earlier attempts
        self._total_steps = 0
        self._first: tuple[float, int] | None = None
        self._last_line = self._started = time.monotonic()

    def on_state(self, job: Job, state: str, error: str) -> None:
        """Say how the training ended; its steps say the rest."""
        if error:
            self._print(f"{job.label} {state}: {error}", "red")

    def _run(self) -> None:
        while True:
            stopping = self._stop.is_set()
            for record in self._reader.poll():
                self._report(record)
            if stopping:
                return
            now = time.monotonic()
            if now - self._last_line >= 2 * SECONDS_BETWEEN_LINES:
                doing = "training and evaluating" if self._total_steps else "starting the workers"
                self._print(f"{doing}, {now - self._started:.0f} s", "dim")
                self._last_line = now
            self._stop.wait(_POLL_S)

    def _report(self, record: Record) -> None:
        payload = record.payload
        if record.kind == "event" and payload.get("event") == "start":
            self._total_steps = payload["total_steps"]
            self._first = None
            start = f" from step {payload['start_step']}" if payload["start_step"] else ""
            self._print(f"{payload['workers']} worker(s), {self._total_steps} steps{start}", "dim")
        elif record.kind == "event":
            self._print(_event_text(payload), "dim" if payload.get("event") == "machine" else "yellow")
        elif record.kind == "metrics" and "val/images" in payload["values"]:
            self._print(_evaluation_text(payload["values"], payload["step"]))
        elif record.kind == "metrics" and "train/loss" in payload["values"]:
            self._training(record)
            return
        else:
            return
        self._last_line = time.monotonic()

    def _training(self, record: Record) -> None:
        step, values = record.payload["step"], record.payload["values"]
        self._first = self._first or (record.time_s, step)
        now = time.monotonic()
        if now - self._last_line < SECONDS_BETWEEN_LINES and step != self._total_steps:
            return
        self._last_line = now
        elapsed, done = record.time_s - self._first[0], step - self._first[1]
        left = f", {_clock(elapsed / done * (self._total_steps - step))} left" if done else ""
        rate = f", {values['train/images_per_s']:.1f} images/s" if "train/images_per_s" in values else ""
        terms = ", ".join(
            f"{name.removeprefix('train/loss_')} {value:.3f}"
            for name, value in values.items()
            if name.startswith("train/loss_")
        )
        self._print(
            f"step {step}/{self._total_steps}, epoch {values['train/epoch']:.1f}, loss {values['train/loss']:.3f} "
            f"({terms}){rate}{left}"
        )


class SweepProgress(_BackgroundPrinter):
    """Progress of several jobs: a line for each change of a job, and where all stand in between."""

    def __init__(self, jobs: Sequence[Job], console: Console) -> None:
        super().__init__(console)
        self._total = len(jobs)
        self._states: dict[str, str] = dict.fromkeys((job.id for job in jobs), "waiting")
        self._started_at_s: dict[str, float] = {}
        self._steps: dict[str, _Steps] = {}

    def on_state(self, job: Job, state: str, error: str) -> None:
        """Print the change."""
        self._states[job.id] = state
        if state == "running":
            self._started_at_s[job.id] = time.monotonic()
            self._steps[job.id] = _Steps(job)
            self._print(f"{job.label} {_VERBS[job.kind]}")
            return
        self._steps.pop(job.id, None)
        done = sum(known in ("finished", "failed") for known in self._states.values())
        seconds = time.monotonic() - self._started_at_s.get(job.id, time.monotonic())
        text = f"{state}{f': {error}' if error else ''}"
        self._print(f"[{done}/{self._total}] {job.label} {text} ({seconds:.0f} s)", "red" if error else "")

    def _run(self) -> None:
        while not self._stop.wait(2 * SECONDS_BETWEEN_LINES):
            running = [str(steps) for steps in list(self._steps.values())]
            counts = Counter(self._states.values())
            shown = "; ".join(running) or "between two stages"
            others = ", ".join(f"{counts[state]} {state}" for state in ("waiting", "failed") if counts[state])
            self._print(f"{shown}{f' ({others})' if others else ''}", "dim")


class _Steps:
    """Position of a running job's training."""

    def __init__(self, job: Job) -> None:
        self._label = job.label
        self._reader = JournalReader(job.journal)
        self._reader.poll()
        self._total = 0
        self._text = " starts" if job.kind == "train" else ""

    def __str__(self) -> str:
        for record in self._reader.poll():
            if record.kind == "event" and record.payload.get("event") == "start":
                self._total = record.payload["total_steps"]
                self._text = f" at step {record.payload['start_step']}/{self._total}"
            elif record.kind == "metrics" and "train/loss" in record.payload["values"]:
                loss = record.payload["values"]["train/loss"]
                self._text = f" at step {record.payload['step']}/{self._total}, loss {loss:.3f}"
            elif record.kind == "metrics" and "val/images" in record.payload["values"]:
                self._text = " evaluated"
        return f"{self._label}{self._text}"


def _event_text(payload: dict[str, Any]) -> str:
    """An event in words: its message, or its members."""
    if "message" in payload:
        return str(payload["message"])
    members = (f"{name} {value}" for name, value in payload.items() if name not in ("event", "details"))
    return f"{str(payload.get('event', 'event')).replace('_', ' ')}: {', '.join(members)}"


def _evaluation_text(values: dict[str, float], step: int) -> str:
    names = ("AP", "AP50", "AP75")
    shown = ", ".join(f"{name} {100 * values[f'val/{name}']:.1f}" for name in names if f"val/{name}" in values)
    return f"evaluated {values['val/images']:.0f} images at step {step}: {shown}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
