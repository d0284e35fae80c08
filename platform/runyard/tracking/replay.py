"""From the journal to the tracking store, each record once and in order, however often either of them fails.

How far a run's journal has been uploaded stands in a tag of that very run, so that a restarted driver, another machine
or `runyard sync` goes on from there. Points sent again after a crash in between are the same points, which the store
keeps once; steps that a resumed run logs again are passed over: an uploaded point cannot be taken back, and a resumed
run repeats the values of the interrupted one.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from detector.errors import InputError
from detector.files import write_json
from runyard.runs.folder import RunFolder
from runyard.tracking.journal import Journal, JournalError, JournalReader, Record, read
from runyard.tracking.names import POSITION_TAG
from runyard.tracking.runs import TrackedRun
from runyard.tracking.stores import RecordRefusedError, TrackingUnavailableError

if TYPE_CHECKING:
    from runyard.tracking.mlflow_tracker import MlflowTracker

_ARTIFACTS_LEFT_TAG = "runyard.artifacts_left"
_RESUMED_TAG = "resumed_at_steps"
_MAX_RETRY_S = 30.0
_MAX_RETRY_AT_CLOSE_S = 2.0
_RECORDS_A_BATCH = 200

_log = logging.getLogger(__name__)


class JournalUploader:
    """Uploads one journal into one run of one store; every call may raise TrackingError and can then be repeated."""

    def __init__(self, journal: Path, tracker: "MlflowTracker", run: TrackedRun) -> None:
        self._journal = journal
        self._tracker = tracker
        self._run = run
        self._run_id: str | None = None
        self._first_time_s = 0.0
        self._reader = JournalReader(journal)
        self._pending: list[Record] = []
        self._cursor = 0
        self._saved_cursor = 0
        self._uploaded_points: set[tuple[str, int]] = set()
        self._resumed_at: list[int] = []
        self._running = True
        self._failed_artifacts: dict[int, Record] = {}

    def open(self) -> None:
        """Find or make the run, where the journal holds anything, without uploading it."""
        self._pending += self._reader.poll()
        if self._run_id is None and self._pending:
            self._open()

    def upload(self) -> int:
        """Upload what the journal holds beyond the last upload; the number of its records, 0 where nothing was new."""
        self.open()
        count = 0
        while self._pending:
            metrics = list(islice(takewhile(lambda record: record.kind == "metrics", self._pending), _RECORDS_A_BATCH))
            if metrics:
                self._upload_metrics(metrics)
            else:
                self._upload_one(self._pending[0])
            done = max(len(metrics), 1)
            self._cursor = self._pending[done - 1].seq
            del self._pending[:done]
            count += done
        if self._cursor != self._saved_cursor:
            self._save_position()
        return count

    def retry_artifacts(self) -> int:
        """Upload artifacts whose upload failed before; how many are still left."""
        if self._run_id is None or not self._failed_artifacts:
            return 0
        for record in list(self._failed_artifacts.values()):
            self._upload_artifact(record)
        self._save_position()
        return len(self._failed_artifacts)

    def left(self) -> int:
        """How many of the journal's records are not in the store; all of them where it was never reached."""
        return sum(1 for _ in read(self._journal, after_seq=self._cursor)) + len(self._failed_artifacts)

    def _open(self) -> None:
        # A folder that was deleted and trained again has another journal: that is another run, not a longer one.
        self._first_time_s = self._pending[0].time_s
        run_id = self._open_run()
        tags = self._tracker.get_tags(run_id)
        if POSITION_TAG not in tags:  # from now on it is the one
            self._tracker.set_tags(run_id, {POSITION_TAG: "0"})
        self._cursor = self._saved_cursor = int(tags.get(POSITION_TAG, 0))
        artifacts_left = set(json.loads(tags.get(_ARTIFACTS_LEFT_TAG, "[]")))
        for record in self._pending:
            if record.seq <= self._cursor:
                self._remember(record)
                if record.seq in artifacts_left:
                    self._failed_artifacts[record.seq] = record
        self._pending = [record for record in self._pending if record.seq > self._cursor]
        self._run_id = run_id

    def _open_run(self) -> str:
        first_time_s = self._first_time_s
        return self._tracker.open_run(self._run, journal=f"{first_time_s:.3f}", start_time_s=first_time_s)

    def _remember(self, record: Record) -> None:
        if record.kind == "metrics":
            self._uploaded_points |= {(name, record.payload["step"]) for name in record.payload["values"]}
        elif record.kind == "rewind":
            self._running = True
            if record.payload["step"] > 0:
                self._resumed_at.append(record.payload["step"])
        elif record.kind == "status":
            self._running = record.payload["status"] == "RUNNING"

    def _upload_metrics(self, records: list[Record]) -> None:
        from runyard.tracking.mlflow_tracker import MetricValue

        points: dict[tuple[str, int], MetricValue] = {}
        for record in records:
            step = record.payload["step"]
            for name, value in record.payload["values"].items():
                if (name, step) not in self._uploaded_points:
                    points.setdefault((name, step), MetricValue(name, value, step, record.time_s))
        assert self._run_id is not None
        try:
            self._tracker.log_metrics(self._run_id, list(points.values()))
        except RecordRefusedError:
            self._tracker.require_active(self._run_id)
            if len(records) == 1:
                _log.warning("record %d of %s was refused by the tracking store", records[0].seq, self._journal)
            else:
                for record in records:
                    self._upload_metrics([record])
        self._uploaded_points |= set(points)

    def _upload_one(self, record: Record) -> None:
        assert self._run_id is not None
        payload = record.payload
        try:
            if record.kind == "params":
                self._tracker.log_params(self._run_id, payload)
            elif record.kind == "tag":
                self._tracker.set_tags(self._run_id, {str(payload["key"]): str(payload["value"])})
            elif record.kind == "artifact":
                self._upload_artifact(record)
            elif record.kind == "status":
                self._tracker.set_status(self._run_id, payload["status"], payload.get("message", ""), record.time_s)
                if payload["status"] != "RUNNING":
                    self._open_run()  # deletes what requests that were given up have made in the meantime
            elif record.kind == "rewind":
                self._upload_rewind(payload["step"], record.time_s)
        except RecordRefusedError as error:
            self._tracker.require_active(self._run_id)
            _log.warning("record %d of %s was refused: %s", record.seq, self._journal, error)
        self._remember(record)

    def _upload_rewind(self, step: int, time_s: float) -> None:
        assert self._run_id is not None
        if not self._running:  # a run that had ended goes on
            self._tracker.set_status(self._run_id, "RUNNING", time_s=time_s)
        if step > 0:
            steps = ", ".join(str(earlier) for earlier in [*self._resumed_at, step])
            self._tracker.set_tags(self._run_id, {_RESUMED_TAG: steps})

    def _upload_artifact(self, record: Record) -> None:
        """A failed upload is put aside and said, so that it holds up neither curves nor the run's status."""
        assert self._run_id is not None
        path = self._journal.parent / record.payload["path"]
        try:
            if not path.exists():
                _log.warning("%s is gone and cannot be uploaded", path)
            else:
                self._tracker.log_artifact(self._run_id, path, record.payload["artifact_path"])
            self._failed_artifacts.pop(record.seq, None)
        except (TrackingUnavailableError, RecordRefusedError) as error:
            if record.seq not in self._failed_artifacts:
                _log.warning("%s was not uploaded yet: %s", path, error)
            self._failed_artifacts[record.seq] = record

    def _save_position(self) -> None:
        assert self._run_id is not None
        position = {POSITION_TAG: str(self._cursor), _ARTIFACTS_LEFT_TAG: json.dumps(sorted(self._failed_artifacts))}
        self._tracker.set_tags(self._run_id, position)
        self._saved_cursor = self._cursor


class JournalReplayer:
    """Uploads a growing journal from a thread of its own. Nothing that the store does reaches the caller."""

    def __init__(
        self,
        journal: Path,
        open_tracker: Callable[[], "MlflowTracker"],
        run: TrackedRun,
        *,
        poll_s: float = 1.0,
        first_retry_s: float = 1.0,
    ) -> None:
        """Start at once. While the store fails it is tried again after 1, 2, 4 ... 30 s (`first_retry_s` doubling).

        Args:
            open_tracker: called in the thread: MLflow takes a second to import, and seconds to make a store.
        """
        self._journal = journal
        self._open_tracker = open_tracker
        self._run = run
        self._uploader: JournalUploader | None = None
        self._poll_s = poll_s
        self._first_retry_s = first_retry_s
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._work, name="journal-replayer", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float = 30.0) -> int:
        """Upload the rest for at most this long; the number of records left for `runyard sync`."""
        self._deadline = time.monotonic() + timeout_s
        self._closing.set()
        self._thread.join(timeout_s)
        return sum(1 for _ in read(self._journal)) if self._uploader is None else self._uploader.left()

    def _work(self) -> None:
        retry_s = self._first_retry_s
        failing = False
        while True:
            closing = self._closing.is_set()
            try:
                if self._uploader is None:
                    self._uploader = JournalUploader(self._journal, self._open_tracker(), self._run)
                count = self._uploader.upload()
                if failing:
                    _log.warning("the tracking store answers again: %d records were uploaded", count)
                failing = False
                retry_s = self._first_retry_s
                if closing:
                    self._uploader.retry_artifacts()
                    return
                pause_s = self._poll_s
            except TrackingUnavailableError as error:
                if not failing:
                    _log.warning("%s. The run goes on; its journal keeps everything until then", error)
                failing = True
                pause_s = retry_s
                retry_s = min(2 * retry_s, _MAX_RETRY_S)
            except InputError as error:
                _log.error("%s. The run goes on untracked; `runyard sync` uploads its journal later", error)
                return
            except Exception:
                _log.exception("tracking stopped by a fault of its own; `runyard sync` uploads the journal later")
                return
            if not closing:
                self._closing.wait(pause_s)
                continue
            pause_s = min(pause_s, _MAX_RETRY_AT_CLOSE_S)
            if time.monotonic() + pause_s > self._deadline:
                return
            time.sleep(pause_s)


def remember_run(folder: RunFolder, experiment: str, run: TrackedRun) -> None:
    """Write beside the journal what `sync` needs to find the run again, in whatever store."""
    write_json(folder.tracking, {"experiment": experiment, "run": run.to_dict()}, indent=2)


def sync(folder: RunFolder, tracking_uri: str) -> int:
    """Upload what a run's journal holds beyond its last upload; the number of records, 0 where all was there.

    A run that no process is writing any more, but whose journal does not say how it ended, is closed as KILLED. Raises
    TrackingError where the store fails, InputError where the folder holds no tracked run.
    """
    from runyard.tracking.mlflow_tracker import MlflowTracker

    try:
        fields = json.loads(folder.tracking.read_text(encoding="utf-8"))
        run, experiment = TrackedRun.from_dict(fields["run"]), str(fields["experiment"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = "Give the folder of one run: the one that holds journal.jsonl"
        raise InputError("is not the folder of a tracked run", file=folder.root, remedy=remedy) from error
    _close_if_abandoned(folder.journal)
    uploader = JournalUploader(folder.journal, MlflowTracker(tracking_uri, experiment), run)
    count = uploader.upload()
    if left := uploader.retry_artifacts():
        raise TrackingUnavailableError(
            f"{left} artifacts could not be uploaded", file=folder.root, remedy="Run it again"
        )
    return count


def _close_if_abandoned(journal: Path) -> None:
    ended: bool | None = None
    for record in read(journal):
        if record.kind in ("metrics", "rewind"):
            ended = False
        elif record.kind == "status":
            ended = record.payload["status"] != "RUNNING"
    if ended is not False:
        return
    try:
        with Journal(journal, lock_timeout_s=0) as writer:
            writer.append("status", {"status": "KILLED", "message": "its process ended without saying how"})
    except JournalError:
        return  # it is being written: the run is alive
