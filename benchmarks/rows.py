"""A comparison's outcome as a row: what was measured, at what size, against which goal, with which verdict."""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.intervals import Goal, Interval, Kind, interval, paired, verdict
from benchmarks.machine import is_busy


@dataclass(frozen=True)
class Row:
    """One comparison."""

    key: str
    """P1, P2, ..."""
    what: str
    size: str
    """What was measured; begins with 'reduced:' where the goal is about something larger."""
    kind: Kind
    unit: str
    """Unit of `ours` and `other`: 's', 'CPU s', 'images/s', 'MiB', 'share'."""
    ours: Sequence[float]
    other: Sequence[float] | None = None
    other_name: str = ""
    goal: Goal | None = None
    """The bound that holds for this device and size; None without one."""
    goal_text: str = ""
    """The goal in words, also where it is about another size or device."""
    checked: str = ""
    """Results that were found equal before anything was timed."""
    note: str = ""
    busy: float | None = None
    """Processors at work for others when this was measured."""

    @property
    def values(self) -> list[float]:
        """The statistic, pair by pair."""
        return paired(self.kind, self.ours, self.other)

    @property
    def interval(self) -> Interval:
        """Median and interval of the statistic."""
        return interval(self.values)

    @property
    def is_relative(self) -> bool:
        """True where a machine that is busy with other things leaves the statistic (nearly) unchanged."""
        return self.kind in ("speed-up", "ratio", "overhead") or self.unit in _STEADY_UNITS

    @property
    def was_disturbed(self) -> bool:
        """True where an absolute time of this row is worth nothing."""
        return is_busy(self.busy)

    @property
    def verdict(self) -> str:
        """See `intervals.verdict`; an absolute time that others have disturbed resolves nothing."""
        if self.goal is not None and not self.goal.needs and self.was_disturbed and not self.is_relative:
            return "not resolved"
        return verdict(self.interval, self.goal)

    @property
    def withholds(self) -> bool:
        """True where the absolute amounts are left out because other processes were at work."""
        return self.was_disturbed and self.unit not in _STEADY_UNITS

    def to_dict(self) -> dict[str, Any]:
        """For the JSON file."""
        found = self.interval
        columns = {"ours": list(self.ours), "other": None if self.other is None else list(self.other)}
        shown = self.is_relative or not self.withholds
        return {
            "key": self.key,
            "what": self.what,
            "size": self.size,
            "against": self.other_name,
            "statistic": self.kind,
            "unit": self.unit,
            "repeats": len(self.ours),
            "median": found.median if shown else None,
            "interval_95": [_finite(found.low), _finite(found.high)] if shown else None,
            "values": self.values if shown else None,
            **({} if self.withholds else columns),
            "goal": self.goal_text,
            "verdict": self.verdict,
            "checked": self.checked,
            "note": self.note,
            "busy_cores": self.busy,
        }


_STEADY_UNITS = ("share", "MiB", "CPU s")


@dataclass(frozen=True)
class NotRun:
    """A comparison that could not be made here, and why."""

    key: str
    what: str
    reason: str
    """'needs a GPU'"""

    def to_dict(self) -> dict[str, Any]:
        """For the JSON file."""
        return {"key": self.key, "what": self.what, "verdict": "not measured", "note": self.reason}


AnyRow = Row | NotRun

FAILED = "failed"
"""How the reason begins where a comparison ended in an error."""


def rows_or_reason(key: str, what: str, work: Callable[[], Sequence[AnyRow]]) -> list[AnyRow]:
    """The rows that `work` gives; if it fails, a row that says so: other comparisons can still be made."""
    try:
        return list(work())
    except Exception as error:
        traceback.print_exc()
        return [NotRun(key, what, f"{FAILED}: {type(error).__name__}: {str(error)[:300]}")]


def print_table(rows: Sequence[AnyRow], machine: dict[str, Any], console: Console) -> None:
    """Rows, machine and versions for people."""
    table = Table(show_lines=True, expand=True)
    table.add_column("", no_wrap=True)
    table.add_column("what", ratio=1)
    for heading, width in (("ours / other", 24), ("median [95 % interval]", 26), ("goal", 20), ("verdict", 16)):
        table.add_column(heading, width=width)
    for row in rows:
        if isinstance(row, NotRun):
            table.add_row(row.key, row.what, "", "", "", f"{row.reason}: not measured")
            continue
        table.add_row(
            row.key,
            "\n".join(part for part in (row.what, row.size, row.checked, row.note) if part),
            "\n".join(amounts(row)),
            "(busy)" if row.withholds and not row.is_relative else escape(statistic(row)),
            row.goal_text,
            "\n".join([row.verdict, *([f"({row.busy:.1f} cores busy)"] if row.was_disturbed else [])]),
        )
    console.print(table)
    console.print("; ".join(f"{name} {value}" for name, value in machine.items()), soft_wrap=True, highlight=False)
    if any(isinstance(row, Row) and row.was_disturbed for row in rows):
        console.print("(busy): other processes were at work before or after this row; absolute times are withheld")


def amounts(row: Row) -> list[str]:
    """Medians of ours and of the other, unless they are withheld; and what the other is."""
    columns = [row.ours] if row.other is None else [row.ours, row.other]
    medians = " / ".join(_amount(interval(column).median, row.unit) for column in columns)
    return ["(busy)" if row.withholds else medians, *([row.other_name] if row.other_name else [])]


def statistic(row: Row) -> str:
    """Median and interval in the statistic's unit."""
    found = row.interval
    if row.kind == "speed-up":
        texts = [f"{value:.3g}x" for value in (found.median, found.low, found.high)]
    elif row.kind == "ratio":
        texts = [f"{value:.3g}" for value in (found.median, found.low, found.high)]
    elif row.kind == "overhead" or row.unit == "share":
        texts = [f"{100 * value:.3g} %" for value in (found.median, found.low, found.high)]
    else:
        texts = [_amount(value, row.unit) for value in (found.median, found.low, found.high)]
    return f"{texts[0]} " + (f"[{texts[1]}, {texts[2]}]" if isfinite(found.low) else "[too few repeats]")


def _amount(value: float, unit: str) -> str:
    if unit == "s" and abs(value) < 1:
        return f"{1000 * value:.3g} ms"
    if unit == "share":
        return f"{100 * value:.3g} %"
    return f"{value:.3g} {unit}"


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if isfinite(value) else None
