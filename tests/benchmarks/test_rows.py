"""Rows: what is shown, what is withheld on a busy machine, what the JSON holds."""

import io
import json
import os
from dataclasses import replace

from rich.console import Console

from benchmarks.intervals import Goal
from benchmarks.rows import AnyRow, NotRun, Row, print_table

QUIET, BUSY = 0.0, float(os.cpu_count() or 1)
SPEED_UP = Row(
    key="P0",
    what="a comparison",
    size="reduced: small",
    kind="speed-up",
    unit="s",
    ours=[0.123] * 8,
    other=[0.456] * 8,
    other_name="another library",
    goal=Goal(3.0, at_least=True),
    goal_text="3x and more",
    busy=QUIET,
)
TIME = replace(SPEED_UP, kind="value", other=None, goal=Goal(0.2, at_least=False), goal_text="at most 0.2 s")


def text_of(rows: list[AnyRow]) -> str:
    stream = io.StringIO()
    print_table(rows, {"cores": 2}, Console(file=stream, width=160))
    return stream.getvalue()


def test_a_quiet_row_shows_everything() -> None:
    text = text_of([SPEED_UP, TIME])
    for part in ("123 ms / 456 ms", "another library", "3.71x [3.71x, 3.71x]", "3x and more", "reduced: small", "met"):
        assert part in text
    assert SPEED_UP.verdict == TIME.verdict == "met"


def test_a_busy_machine_leaves_ratios_and_withholds_times() -> None:
    ratio, time = replace(SPEED_UP, busy=BUSY), replace(TIME, busy=BUSY)
    assert (ratio.verdict, time.verdict) == ("met", "not resolved")
    text = text_of([ratio, time])
    assert "3.71x" in text
    assert "123 ms" not in text
    assert "0.123" not in json.dumps([ratio.to_dict(), time.to_dict()])
    assert ratio.to_dict()["median"] == SPEED_UP.to_dict()["median"]
    assert time.to_dict()["median"] is None


def test_memory_is_not_withheld() -> None:
    row = replace(SPEED_UP, kind="ratio", unit="MiB", busy=BUSY)
    assert row.to_dict()["ours"] == [0.123] * 8
    assert "0.123 MiB / 0.456 MiB" in text_of([row])


def test_too_few_repeats_say_so_and_are_valid_json() -> None:
    row = replace(SPEED_UP, ours=[0.1], other=[0.4])
    assert row.verdict == "not resolved"
    assert "[too few repeats]" in text_of([row])
    assert json.loads(json.dumps(row.to_dict(), allow_nan=False))["interval_95"] == [None, None]


def test_shares_and_overheads_are_percentages() -> None:
    share = replace(TIME, unit="share", ours=[0.0012] * 8, goal=None)
    overhead = replace(SPEED_UP, kind="overhead", ours=[1.02] * 8, other=[1.0] * 8, goal=None)
    text = text_of([share, overhead])
    assert "0.12 %" in text
    assert "2 % [2 %, 2 %]" in text
    assert overhead.verdict == "no goal"


def test_what_was_not_run_says_why() -> None:
    row = NotRun("P5", "two workers", "needs two GPUs")
    text = text_of([row])
    assert "needs two GPUs:" in text
    assert "not measured" in text
    assert row.to_dict()["verdict"] == "not measured"


def test_a_goal_about_another_machine_is_neither_met_nor_missed() -> None:
    row = replace(SPEED_UP, goal=Goal(3.0, at_least=True, needs="a GPU"))
    assert row.verdict == replace(row, busy=BUSY).verdict == "needs a GPU: not measured"
    assert row.to_dict()["median"] == SPEED_UP.to_dict()["median"]


def test_processor_time_is_not_withheld() -> None:
    row = replace(TIME, unit="CPU s", busy=BUSY)
    assert row.to_dict()["ours"] == [0.123] * 8
    assert row.verdict == "met"
