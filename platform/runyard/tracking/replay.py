"""Uploads the journals of a run, or of all trials of a sweep, while they grow: one thread and one store for all.

A round visits every unfinished journal and sends what is new, at most one request a journal while it only trains. If
the store fails, the round ends and is repeated after 1, 2, 4 ... 30 s.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from detector.errors import InputError
from runyard.tracking.journal import read
from runyard.tracking.runs import TrackedRun
from runyard.tracking.stores import RunRefusedError, TrackingUnavailableError
from runyard.tracking.uploader import JournalUploader

if TYPE_CHECKING:
    from runyard.tracking.mlflow_tracker import MlflowTracker

POLL_VARIABLE = "RUNYARD_TRACKING_POLL_S"
_POLL_S = 10.0
_MAX_RETRY_S = 30.0
_RETRY_AT_CLOSE_S = 2.0
CLOSE_S = 60.0
"""Longest time that `close` waits for a store that answers."""
LOST_S = 20.0
"""Longest time that `close` waits for a store that answered earlier and does not now."""
DEAD_S = 5.0
"""Longest time that `close` waits for a store that failed from the beginning: one last try."""
_SILENT_S = 1.0

_log = logging.getLogger(__name__)


@dataclass
class _Followed:
    journal: Path
    run: TrackedRun
    uploader: JournalUploader | None = None
    refused: bool = False

    def left(self) -> int:
        """Number of records that are not in the store."""
        return sum(1 for _ in read(self.journal)) if self.uploader is None else self.uploader.left()


class JournalReplayer:
    """Uploads growing journals from a thread of its own. Nothing that the store does reaches the caller."""

    def __init__(
        self,
        open_tracker: Callable[[], "MlflowTracker"],
        *,
        poll_s: float | None = None,
        first_retry_s: float = 1.0,
    ) -> None:
        """Start at once; `follow` adds journals.

        Args:
            open_tracker: called in the thread: MLflow takes a second to import, and seconds to create a store.
            poll_s: seconds from one round to the next; None: $RUNYARD_TRACKING_POLL_S, else 10.
        """
        self._open_tracker = open_tracker
        self._poll_s = float(os.environ.get(POLL_VARIABLE, _POLL_S)) if poll_s is None else poll_s
        self._first_retry_s = first_retry_s
        self._tracker: MlflowTracker | None = None
        self._followed: list[_Followed] = []
        self._has_answered = False
        self._failing_at: _Followed | None = None
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._work, name="journal-replayer", daemon=True)
        self._thread.start()

    def follow(self, journal: Path, run: TrackedRun) -> None:
        """Upload a journal, which need not exist yet, into a run from now on; its first records at once."""
        self._followed.append(_Followed(journal, run))
        self._changed.set()

    def close(self, timeout_s: float = CLOSE_S, say: Callable[[str], None] = _log.warning) -> int:
        """Upload the rest; returns the number of records left for `runyard sync`.

        Waits at most `timeout_s`, at most LOST_S for a store that was lost on the way, and at most DEAD_S for one that
        never answered; if it takes more than a second, `say` gets one line. Runs without a parent come last, so that a
        sweep never looks finished before its trials.
        """
        began_s = time.monotonic()
        self._closing.set()
        self._changed.set()
        silent_s = _SILENT_S
        while True:
            self._thread.join(min(silent_s, timeout_s))
            waited_s = time.monotonic() - began_s
            limit_s = min(timeout_s, self._patience_s())
            if not self._thread.is_alive() or waited_s >= limit_s:
                break
            if silent_s == _SILENT_S:
                silent_s = 0.1
                say(
                    f"the tracking store {self._state()}; records left: {self._left()}; waiting at most {limit_s:.0f} s"
                )
        self._abandoned.set()
        return self._left()

    def _patience_s(self) -> float:
        if self._failing_at is None:
            return CLOSE_S
        return LOST_S if self._has_answered else DEAD_S

    def _state(self) -> str:
        if self._failing_at is not None:
            return "does not answer"
        return "is taking the last records" if self._has_answered else "has not answered yet"

    def _left(self) -> int:
        return sum(followed.left() for followed in list(self._followed))

    def _work(self) -> None:
        retry_s = self._first_retry_s
        while True:
            self._changed.clear()
            closing = self._closing.is_set()
            began_s = time.monotonic()
            try:
                self._round(closing, began_s)
            except TrackingUnavailableError as error:
                if retry_s == self._first_retry_s:
                    _log.warning("%s. The run goes on; its journal keeps everything until then", error)
                if closing and not self._has_answered:
                    return
                self._wait(min(retry_s, _RETRY_AT_CLOSE_S) if closing else retry_s, until_closing=not closing)
                retry_s = min(2 * retry_s, _MAX_RETRY_S)
            except InputError as error:
                _log.error("%s. The run goes on untracked; `runyard sync` uploads its journal later", error)
                return
            except Exception:
                _log.exception("tracking stopped by a fault of its own; `runyard sync` uploads the journal later")
                return
            else:
                retry_s = self._first_retry_s
                if closing:
                    return
                self._changed.wait(max(self._poll_s - (time.monotonic() - began_s), 0.0))
            if self._abandoned.is_set():
                return

    def _wait(self, pause_s: float, *, until_closing: bool) -> None:
        (self._closing if until_closing else self._abandoned).wait(pause_s)

    def _round(self, closing: bool, began_s: float) -> None:
        """Upload what is new in every journal: first what takes milliseconds, then artifacts."""
        followed = sorted(self._followed, key=lambda one: one.run.parent is None) if closing else list(self._followed)
        active = [one for one in followed if not one.refused]
        for one in active:
            if closing or one.uploader is None or not one.uploader.is_finished:
                self._visit(one, lambda uploader: uploader.upload(until_artifact=True))
        for one in active:
            if one.uploader is not None and one.uploader.has_more:
                self._visit(one, JournalUploader.upload)
                if not closing and time.monotonic() - began_s > self._poll_s:
                    return  # curves first; the next round goes on with the artifacts
        if closing:
            for one in active:
                if one.uploader is not None:
                    self._visit(one, JournalUploader.retry_artifacts)

    def _visit(self, one: _Followed, work: Callable[[JournalUploader], int]) -> None:
        """Do something with one journal; a refused run is left out from now on, other errors end the round."""
        if self._abandoned.is_set() or one.refused:
            return
        try:
            if self._tracker is None:
                self._tracker = self._open_tracker()
            if one.uploader is None:
                one.uploader = JournalUploader(one.journal, self._tracker, one.run)
            count = work(one.uploader)
        except TrackingUnavailableError:
            self._failing_at = one
            raise
        except RunRefusedError as error:
            _log.error("%s. %s goes on untracked; `runyard sync` uploads its journal later", error, one.run.name)
            one.refused = True
            return
        if self._failing_at is one:
            _log.warning("the tracking store answers again: %d records were uploaded", count)
            self._failing_at = None
        self._has_answered |= count > 0
