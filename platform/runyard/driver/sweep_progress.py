"""What a person sees while a sweep goes on: a line for each change of a trial, and now and then where all stand."""

import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console

from runyard.driver.jobs import Job
from runyard.driver.progress import BackgroundPrinter
from runyard.tracking.journal import JournalReader

SECONDS_BETWEEN_LINES = 30.0


class SweepProgress(BackgroundPrinter):
    """Prints while it is entered; `on_state` is for whoever runs the jobs."""

    def __init__(self, jobs: Sequence[Job], console: Console) -> None:
        super().__init__(console)
        self._total = len(jobs)
        self._states: dict[str, str] = dict.fromkeys((job.id for job in jobs), "waiting")
        self._started_at_s: dict[str, float] = {}
        self._steps: dict[str, _Steps] = {}

    def on_state(self, job: Job, state: str, error: str) -> None:
        """A job is running, finished or failed."""
        self._states[job.id] = state
        done = sum(known in ("finished", "failed") for known in self._states.values())
        verb = {"train": "trains", "candidates": "writes candidates", "score": "is scored"}[job.kind]
        if state == "running":
            self._started_at_s[job.id] = time.monotonic()
            self._steps[job.id] = _Steps(job)
            self._tell(f"  {job.label} {verb}")
            return
        self._steps.pop(job.id, None)
        seconds = time.monotonic() - self._started_at_s.get(job.id, time.monotonic())
        text = f"{state}{f': {error}' if error else ''}"
        self._tell(f"  [{done}/{self._total}] {job.label} {text} ({seconds:.0f} s)", "red" if error else "")

    def _run(self) -> None:
        while not self._stop.wait(SECONDS_BETWEEN_LINES):
            running = [str(steps) for steps in list(self._steps.values())]
            counts = Counter(self._states.values())
            if running:
                told = ", ".join(f"{counts[state]} {state}" for state in ("waiting", "failed") if counts[state])
                self._tell(f"  {'; '.join(running)}{f' ({told})' if told else ''}", "dim")

    def _tell(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style or None, markup=False, highlight=False, soft_wrap=True)


class _Steps:
    """How far a running job's training has come."""

    def __init__(self, job: Job) -> None:
        self._label = job.label
        self._reader = JournalReader(job.journal)
        self._reader.poll()
        self._total = 0
        self._text = ""

    def __str__(self) -> str:
        for record in self._reader.poll():
            if record.kind == "event" and record.payload.get("event") == "start":
                self._total = record.payload["total_steps"]
                self._text = f" at step {record.payload['start_step']}/{self._total}"
            elif record.kind == "metrics" and "train/loss" in record.payload["values"]:
                loss = record.payload["values"]["train/loss"]
                self._text = f" at step {record.payload['step']}/{self._total}, loss {loss:.3f}"
            elif record.kind == "metrics":
                self._text = " evaluated"
        return f"{self._label}{self._text}"
