"""Starts of a run's training, one JSON line each: command, sources, machine and workers. The file only grows."""

import json
import os
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from detector.config import NUMERICS_VERSION
from detector.files import encode_json
from runyard.runs.folder import RunFolder
from runyard.runs.manifest import describe_machine, describe_source, redacted_command, source_root
from runyard.spec import ExperimentSpec


def describe_start() -> dict[str, Any]:
    """Command line and sources of this driver; the same for all runs that it starts."""
    source = describe_source(source_root())
    return {
        "command": shlex.join(redacted_command(sys.argv)),
        "source": {key: source[key] for key in ("git_sha", "git_sha_from", "dirty", "files_sha256")},
        "numerics": NUMERICS_VERSION,
    }


def record_attempt(folder: RunFolder, spec: ExperimentSpec, launcher: str, start: Mapping[str, Any]) -> None:
    """Append an attempt; the caller holds the run's lock.

    Args:
        start: what `describe_start` gave in the driver's process.
    """
    runtime = spec.runtime
    attempt = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **start,
        "launcher": launcher,
        "workers": runtime.workers,
        "accumulation": runtime.accumulation,
        "machine": describe_machine(),
    }
    with folder.attempts.open("ab") as stream:
        stream.write(encode_json(attempt) + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def read_attempts(folder: RunFolder) -> list[dict[str, Any]]:
    """All attempts, oldest first; a torn last line is left out, a missing file gives none."""
    try:
        lines = folder.attempts.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    attempts = []
    for line in lines:
        try:
            attempts.append(json.loads(line))
        except ValueError:
            continue
    return attempts


def commits(folder: RunFolder) -> tuple[str, ...]:
    """Different commits that a run was trained at, 'unknown' where one is; oldest first."""
    found = (attempt.get("source", {}).get("git_sha") or "unknown" for attempt in read_attempts(folder))
    return tuple(dict.fromkeys(found))
