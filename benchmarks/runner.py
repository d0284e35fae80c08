"""Run comparisons one after the other and record their results."""

import importlib
import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.rows import FAILED, AnyRow, NotRun, Row, rows_or_reason
from benchmarks.settings import Settings
from benchmarks.timing import keep_freed_memory

COMPARISONS = {
    "P1": "training_step:measure",
    "P2": "training_step:measure_iou_branch",
    "P3": "data_wait:measure",
    "P4": "launchers:measure",
    "P5": "scaling:measure",
    "P6": "inference:measure",
    "P7": "inference:measure_batches",
    "P8": "post_processing:measure",
    "P9": "average_precision:measure",
    "P10": "alpha_rows:measure",
    "P11": "matching_and_losses:measure",
    "P12": "start_up:measure",
    "P13": "tracker_calls:measure",
    "P14": "memory:measure",
}

PAGE_FAULTS_MATTER = ("P2", "P8", "P11")
"""Work with large temporaries in a single process: on a CPU it is measured a second time without the page faults that
these cost (`keep_freed_memory`)."""


def run_apart(key: str, settings: Settings) -> list[AnyRow]:
    """`run` in a new process, so that nothing depends on the memory that earlier comparisons have left behind."""
    rows = _in_a_process(key, settings)
    if key not in PAGE_FAULTS_MATTER or settings.on_gpu:
        return rows
    spared = [
        row for row in _in_a_process(key, settings, keep_freed_memory) if isinstance(row, Row) or has_failed([row])
    ]
    note = "both spared the page faults of large temporaries"
    return rows + [replace(row, note=note) if isinstance(row, Row) else row for row in spared]


def _in_a_process(key: str, settings: Settings, first: Callable[[], None] | None = None) -> list[AnyRow]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=first) as process:
        return rows_or_reason(key, title(key), process.submit(run, key, settings).result)


def run(key: str, settings: Settings) -> list[AnyRow]:
    """The rows of one comparison; if it fails, a row that says so: the others can go on."""
    module, _, function = COMPARISONS[key].partition(":")
    look_s = 0.1 if settings.quick else 1.0
    busy = machine.busy_cores(look_s)
    rows = rows_or_reason(
        key,
        title(key),
        lambda: getattr(importlib.import_module(f"benchmarks.{module}"), function)(settings),
    )
    after = machine.busy_cores(look_s)
    load = None if busy is None or after is None else max(busy, after)
    return [replace(row, busy=load) if isinstance(row, Row) else row for row in rows]


def title(key: str) -> str:
    """Subject of a comparison."""
    return COMPARISONS[key].partition(":")[0].replace("_", " ")


def has_failed(rows: Sequence[AnyRow]) -> bool:
    """True where a comparison ended in an error: a fault of the project or of its installation, not a verdict."""
    return any(isinstance(row, NotRun) and row.reason.startswith(FAILED) for row in rows)


def write_json(path: Path, found: dict[str, Any], rows: Sequence[AnyRow], **more: Any) -> None:
    """Machine, versions, date and rows, and further entries."""
    content = {**more, "machine": found, "rows": [row.to_dict() for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
