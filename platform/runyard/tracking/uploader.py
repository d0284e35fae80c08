"""From one journal to its run in a tracking store, each record once and in order, however often either of them fails.

The position up to which a journal has been uploaded is a tag of that very run, so that a restarted driver, another
machine or `runyard sync` continues from there. Points sent again after a crash in between are the same points, which
the store keeps once. Steps that a resumed run logs again are skipped: an uploaded point cannot be withdrawn, and a
resumed run repeats the values of the interrupted one.
"""

import json
import logging
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from runyard.tracking.journal import JournalReader, Record, read
from runyard.tracking.names import POSITION_TAG
from runyard.tracking.runs import TrackedRun
from runyard.tracking.stores import RecordRefusedError, TrackingUnavailableError

if TYPE_CHECKING:
    from runyard.tracking.mlflow_tracker import MlflowTracker

_ARTIFACTS_LEFT_TAG = "runyard.artifacts_left"
_RESUMED_TAG = "resumed_at_steps"
_RECORDS_A_BATCH = 200

_log = logging.getLogger(__name__)


class JournalUploader:
    """Upload of one journal into one run of one store; every call may raise TrackingError and can then be repeated."""

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
        self._finished = False
        self._failed_artifacts: dict[int, Record] = {}

    def open(self) -> None:
        """Find or create the run if the journal holds anything, without uploading it."""
        self._pending += self._reader.poll()
        if self._run_id is None and self._pending:
            self._open()

    def upload(self, *, until_artifact: bool = False) -> int:
        """Upload the journal's records since the last upload; returns their number, 0 if nothing was new.

        Stops before the first artifact if asked to: an artifact may take minutes, anything else does not.
        """
        self.open()
        count = 0
        while self._pending and not (until_artifact and self._pending[0].kind == "artifact"):
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
        """Upload artifacts whose upload failed before; returns how many are still left."""
        if self._run_id is None or not self._failed_artifacts:
            return 0
        for record in list(self._failed_artifacts.values()):
            self._upload_artifact(record)
        self._save_position()
        return len(self._failed_artifacts)

    @property
    def has_more(self) -> bool:
        """True while records that were read are not uploaded yet."""
        return bool(self._pending)

    @property
    def is_finished(self) -> bool:
        """True if the last status that was uploaded is FINISHED."""
        return self._finished

    def left(self) -> int:
        """Number of the journal's records that are not in the store; all of them if it was never reached."""
        return sum(1 for _ in read(self._journal, after_seq=self._cursor)) + len(self._failed_artifacts)

    def _open(self) -> None:
        # A folder that was deleted and trained again has another journal: another run, not a longer one.
        self._first_time_s = self._pending[0].time_s
        run_id = self._open_run()
        tags = self._tracker.get_tags(run_id)
        if POSITION_TAG not in tags:  # marks it as the run with uploads
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
            self._running, self._finished = True, False
            if record.payload["step"] > 0:
                self._resumed_at.append(record.payload["step"])
        elif record.kind == "status":
            self._running = record.payload["status"] == "RUNNING"
            self._finished = record.payload["status"] == "FINISHED"

    def _upload_metrics(self, records: list[Record]) -> None:
        from runyard.tracking.mlflow_tracker import MetricValue

        points: dict[tuple[str, int], MetricValue] = {}
        for record in records:
            step = record.payload["step"]
            for name, value in record.payload["values"].items():
                if (name, step) not in self._uploaded_points:
                    points.setdefault((name, step), MetricValue(name, value, step, record.time_s))
        assert self._run_id is not None
        last = records[-1].seq
        try:
            if points:  # position and points in one request
                self._tracker.log_metrics(self._run_id, list(points.values()), self._position(last))
                self._saved_cursor = last
        except RecordRefusedError:
            self._tracker.require_active(self._run_id)
            if len(records) == 1:
                _log.warning("record %d of %s was refused by the tracking store", last, self._journal)
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
        """Upload an artifact; a failure is logged and kept for later, so that it delays neither curves nor status."""
        assert self._run_id is not None
        path = self._journal.parent / record.payload["path"]
        try:
            if not path.exists():
                _log.warning("%s is missing and cannot be uploaded", path)
            else:
                self._tracker.log_artifact(self._run_id, path, record.payload["artifact_path"])
            self._failed_artifacts.pop(record.seq, None)
        except (TrackingUnavailableError, RecordRefusedError) as error:
            if record.seq not in self._failed_artifacts:
                _log.warning("%s was not uploaded yet: %s", path, error)
            self._failed_artifacts[record.seq] = record

    def _save_position(self) -> None:
        assert self._run_id is not None
        self._tracker.set_tags(self._run_id, self._position(self._cursor))
        self._saved_cursor = self._cursor

    def _position(self, cursor: int) -> dict[str, str]:
        return {POSITION_TAG: str(cursor), _ARTIFACTS_LEFT_TAG: json.dumps(sorted(self._failed_artifacts))}
