"""Progress of something that is counted: a bar on a terminal, a line now and then elsewhere, nothing if it is quick."""

import importlib.util
import sys
import time
from types import TracebackType
from typing import Any

SECONDS_BEFORE_ANYTHING_IS_SHOWN = 1.0
SECONDS_BETWEEN_LINES = 10.0


class ProgressBar:
    """Called with (done, total) while it is entered; writes to the standard error stream."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._started = time.monotonic()
        self._last_line = self._started
        # Where only torch is installed, no bar is drawn.
        self._draws = sys.stderr.isatty() and importlib.util.find_spec("rich") is not None
        self._bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._started < SECONDS_BEFORE_ANYTHING_IS_SHOWN:
            return
        if self._draws:
            self._draw(done, total)
        elif now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = (now - self._started) / done * (total - done)
            print(f"  {self._what}: {done:,} of {total:,}, {left:.0f} s left", file=sys.stderr, flush=True)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _draw(self, done: int, total: int) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, transient=True, console=Console(stderr=True))
            self._bar.add_task(self._what, total=total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done)
