"""Upload after the run: find a run or sweep in any store again, and send what its tracking server missed."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detector.errors import InputError
from detector.files import write_json
from runyard.runs.folder import RecordFolder
from runyard.runs.manifest import without_secrets
from runyard.tracking.journal import Journal, JournalError, read
from runyard.tracking.runs import TrackedRun
from runyard.tracking.stores import TrackingUnavailableError
from runyard.tracking.uploader import JournalUploader

_SWEEPS = "sweeps"
_EVALUATIONS = ("evaluation", "oracle")


def remember_run(
    folder: RecordFolder, experiment: str, run: TrackedRun, children: Sequence[tuple[Path, TrackedRun]] = ()
) -> None:
    """Write next to the journal what `sync` needs to find the run again, in whatever store.

    Args:
        children: journals and runs of a sweep's trials.
    """
    storage = storage_of(folder.root)
    content = {
        "experiment": experiment,
        "run": run.to_dict(),
        # Relative to the storage folder, which may move, or be mounted elsewhere.
        "children": [
            {"journal": Path(os.path.relpath(journal, storage)).as_posix(), "run": child.to_dict()}
            for journal, child in children
        ],
    }
    write_json(folder.tracking, content, indent=2)


def storage_of(folder: Path) -> Path:
    """The storage folder of a run, sweep or evaluation: its mlflow.db is their one store."""
    parent = folder.parent
    if parent.name == _SWEEPS:
        return parent.parent
    if parent.name in _EVALUATIONS:
        return parent.parent.parent
    return parent


def sync(folder: RecordFolder, tracking_uri: str) -> int:
    """Upload what the journals of a run, or of a sweep and its trials, hold beyond their last upload.

    Returns the number of records, 0 if nothing was missing. A run that no process is writing any more, but whose
    journal does not say how it ended, is closed as KILLED. Raises TrackingError if the store fails, InputError if the
    folder holds no tracked run.
    """
    from runyard.tracking.mlflow_tracker import MlflowTracker

    storage = storage_of(folder.root)
    try:
        fields = json.loads(folder.tracking.read_text(encoding="utf-8"))
        experiment = str(fields["experiment"])
        runs = [_child(storage, child) for child in fields.get("children", ())]
        runs.append((folder.journal, TrackedRun.from_dict(fields["run"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = "Give the folder of one run or sweep: the one that holds tracking.json"
        raise InputError("expected the folder of a tracked run or sweep", file=folder.root, remedy=remedy) from error
    tracker = MlflowTracker(tracking_uri, experiment)
    count = artifacts_left = 0
    for journal, run in runs:
        _close_if_abandoned(journal)
        uploader = JournalUploader(journal, tracker, run)
        count += uploader.upload()
        artifacts_left += uploader.retry_artifacts()
    if artifacts_left:
        raise TrackingUnavailableError(
            f"{artifacts_left} artifacts could not be uploaded", file=folder.root, remedy="Run it again"
        )
    return count


def sync_command(folder: Path, tracking_uri: str | None) -> str:
    """The shell command that uploads the rest of a run or sweep.

    Args:
        tracking_uri: as the user gave it; None: not at all. Credentials are taken out.
    """
    store = [] if tracking_uri is None else ["--tracking-uri", without_secrets(tracking_uri)]
    return shlex.join(["runyard", "sync", str(folder), *store])


def unsent_notice(left: int, folder: Path, resolved_uri: str, tracking_uri: str | None) -> str:
    """Two lines for a person: how many records have not reached the store, and the command that uploads them.

    Empty if none is left. For any ending of a run: finished, failed or interrupted.
    """
    if left == 0:
        return ""
    records = "1 record" if left == 1 else f"{left} records"
    return (
        f"  {records} did not reach {without_secrets(resolved_uri)}; to upload:\n  {sync_command(folder, tracking_uri)}"
    )


def _child(storage: Path, fields: Mapping[str, Any]) -> tuple[Path, TrackedRun]:
    return storage / str(fields["journal"]), TrackedRun.from_dict(fields["run"])


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
        return  # another process is writing it: the run is alive
