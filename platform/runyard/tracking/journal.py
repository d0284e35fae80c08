"""The run's own record of its measurements: JSON lines on disk, written before they go to any tracking server.

Rank 0 of one run appends; the driver's replayer, `runyard sync` and the plots read, also while it is being written.
Kinds of record and their payloads:

    params    {name: value, ...}, nested as the spec is
    metrics   {step, values: {name: number}}
    tag       {key, value}
    artifact  {path, artifact_path}      path relative to the journal's folder, or absolute
    status    {status: RUNNING | FINISHED | FAILED | KILLED, message}
    event     {event, ...}               restarts, warnings, anything that a person may want to look up
    rewind    {step}                     training continues from this step: later steps logged so far are void

A crash may tear the last line: reading skips it, opening for writing removes it and continues the numbering.
"""

import json
import os
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from detector.errors import ConfigError, InputError
from detector.files import encode_json
from runyard.locks import LockHeldError, held

RecordKind = Literal["params", "metrics", "tag", "artifact", "status", "event", "rewind"]
RunStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

# A lost metrics line costs a point of a curve that the restarted run logs again; the others are written only once.
_SYNCED_KINDS = frozenset({"status", "artifact", "event", "rewind"})


class JournalError(InputError):
    """The journal is being written by another process, or cannot be written at all."""


@dataclass(frozen=True)
class Record:
    """One line: `seq` counts from 1, `time_s` is Unix time."""

    seq: int
    time_s: float
    kind: RecordKind
    payload: dict[str, Any]


class Journal:
    """The one writer of a journal; a lock keeps a second one out until this is closed or its process has died."""

    def __init__(self, path: Path, *, lock_timeout_s: float = 10.0) -> None:
        """Open for appending, creating file and folders as needed.

        Waits `lock_timeout_s` for a dying writer; raises JournalError if it still holds the journal, or if the folder
        cannot be written.
        """
        self.path = path
        self._lock = ExitStack()
        try:
            self._lock.enter_context(
                held(path.with_name(path.name + ".lock"), "writing this run", wait_s=lock_timeout_s)
            )
            reader = JournalReader(path)
            reader.poll()
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.ftruncate(self._descriptor, reader.offset)
        except LockHeldError as error:
            remedy = "Wait for it, or stop it; two processes must not write one run"
            raise JournalError(error.problem, file=path, remedy=remedy) from error
        except ConfigError as error:
            raise JournalError(error.problem, file=path, remedy=error.remedy) from error
        except OSError as error:
            self._lock.close()
            remedy = "Choose a storage path that this user may write to"
            raise JournalError(f"cannot be opened for writing: {error.strerror}", file=path, remedy=remedy) from error
        self._seq = reader.last_seq
        self._unwritten = bytearray()
        self._warned = False
        self._thread_lock = threading.Lock()

    def append(self, kind: RecordKind, payload: Mapping[str, Any]) -> int:
        """Add a record and return its sequence number; the line has left this process when this returns.

        A full or failing disk does not raise: the line is kept in memory, written with the next one, and a
        RuntimeWarning says so once. Values of metrics become floats; what JSON does not know becomes a string.
        """
        if kind not in get_args(RecordKind):
            raise ValueError(f"unknown kind of record: {kind!r}")
        payload = self._checked(kind, payload)
        with self._thread_lock:
            self._seq += 1
            line = {"seq": self._seq, "time": round(time.time(), 3), "kind": kind, "payload": payload}
            self._unwritten += encode_json(line, non_finite="text", default=str) + b"\n"
            self._drain(sync=kind in _SYNCED_KINDS)
            return self._seq

    def close(self) -> None:
        """Write what is still in memory, sync, and release the lock. Closing twice does nothing."""
        with self._thread_lock:
            if self._descriptor < 0:
                return
            self._drain(sync=True)
            os.close(self._descriptor)
            self._descriptor = -1
            self._lock.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _checked(self, kind: RecordKind, payload: Mapping[str, Any]) -> dict[str, Any]:
        if kind == "metrics":
            values = {str(name): float(value) for name, value in payload["values"].items()}
            return {"step": int(payload["step"]), "values": values}
        if kind == "rewind":
            return {"step": int(payload["step"])}
        if kind == "status" and payload["status"] not in get_args(RunStatus):
            raise ValueError(f"unknown status: {payload['status']!r}")
        if kind == "artifact":
            path = Path(payload["path"]).absolute()
            folder = self.path.parent.absolute()
            # Relative paths let the run's folder move, or be synced from another machine that mounts it elsewhere.
            path = path.relative_to(folder) if path.is_relative_to(folder) else path
            return {"path": path.as_posix(), "artifact_path": payload.get("artifact_path", "")}
        return dict(payload)

    def _drain(self, *, sync: bool) -> None:
        try:
            while self._unwritten:
                # A short write leaves a torn line that the next write completes, so only what is out is dropped.
                del self._unwritten[: os.write(self._descriptor, self._unwritten)]
            if sync:
                os.fsync(self._descriptor)
        except OSError as error:
            if not self._warned:
                warnings.warn(f"{self.path}: cannot be written ({error}); kept in memory", RuntimeWarning, stacklevel=3)
                self._warned = True


class JournalReader:
    """Incremental reader of a growing journal; `last_seq` and `offset` are its position."""

    def __init__(self, path: Path, after_seq: int = 0) -> None:
        self.path = path
        self.last_seq = after_seq
        self.offset = 0
        """Bytes up to the end of the last whole record."""

    def poll(self) -> list[Record]:
        """Complete records since the last call, in order; empty if the file does not exist yet."""
        try:
            with self.path.open("rb") as stream:
                if os.fstat(stream.fileno()).st_size < self.offset:
                    self.offset = 0  # the file was replaced; `last_seq` keeps known records out
                stream.seek(self.offset)
                content = stream.read()
        except FileNotFoundError:
            return []
        records = []
        position = self.offset
        for line in content.splitlines(keepends=True):
            position += len(line)
            record = _parse(line)
            # Offset moves past whole records only: a torn or damaged tail is looked at again, or cut by the writer.
            if record is None:
                continue
            self.offset = position
            if record.seq > self.last_seq:
                self.last_seq = record.seq
                records.append(record)
        return records


def read(path: Path, after_seq: int = 0) -> Iterator[Record]:
    """The records of a journal with a higher sequence number, in order; a torn or damaged line is skipped."""
    yield from JournalReader(path, after_seq).poll()


def last_status(journal: Path) -> RunStatus | None:
    """The latest status in a journal; None without one."""
    status: RunStatus | None = None
    for record in read(journal):
        if record.kind == "status":
            status = record.payload["status"]
    return status


def effective_metrics(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Each metric's curve as (step, value), steps increasing, each step once: the trajectory behind the final weights.

    Steps that a rewind made void are left out unless they were logged again; of a step logged twice the later counts.
    """
    curves: dict[str, dict[int, float]] = {}
    for record in read(path):
        if record.kind == "rewind":
            for curve in curves.values():
                for step in [step for step in curve if step > record.payload["step"]]:
                    del curve[step]
        elif record.kind == "metrics":
            for name, value in record.payload["values"].items():
                curves.setdefault(name, {})[record.payload["step"]] = value
    return {name: sorted(curve.items()) for name, curve in curves.items() if curve}


def _parse(line: bytes) -> Record | None:
    if not line.endswith(b"\n"):
        return None
    try:
        fields = json.loads(line)
        record = Record(int(fields["seq"]), float(fields["time"]), fields["kind"], dict(fields["payload"]))
        if record.kind == "metrics":
            values = record.payload["values"]
            record.payload["values"] = {name: float(value) for name, value in values.items()}
        return record
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
