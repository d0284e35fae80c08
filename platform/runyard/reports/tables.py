"""Rows of metrics as a table for the terminal, for Markdown and for CSV; the same text in all three.

Values are fractions from 0 to 1 and are shown in %, with one decimal.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from detector.evaluation.bootstrap import Interval

NOT_AVAILABLE = "n/a"


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds."""

    mean: float | None
    std: float | None


Cell = float | int | str | Spread | Interval | None
"""A fraction, a text as it is, mean and deviation, a difference with its interval, or None where there is nothing."""


@dataclass(frozen=True)
class Row:
    """One line: a label and its cells by column; a missing column is 'n/a'."""

    label: str
    cells: Mapping[str, Cell]


def cell_text(cell: Cell) -> str:
    """0.369 -> '36.9'; Spread -> '36.9 ± 0.2'; Interval -> '+0.8 [+0.2, +1.4]'; None and NaN -> 'n/a'."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Spread):
        mean, std = _percent(cell.mean), _percent(cell.std)
        return mean if NOT_AVAILABLE in (mean, std) else f"{mean} ± {std}"
    if isinstance(cell, Interval):
        value, low, high = (_percent(part, signed=True) for part in (cell.difference, cell.low, cell.high))
        return value if NOT_AVAILABLE in (value, low, high) else f"{value} [{low}, {high}]"
    return _percent(cell)


def difference_rows(intervals: Mapping[str, Interval]) -> list[Row]:
    """A difference and its interval in two lines, which keeps a table within 80 columns."""
    bounds: dict[str, Cell] = {}
    for name, interval in intervals.items():
        low, high = _percent(interval.low, signed=True), _percent(interval.high, signed=True)
        bounds[name] = NOT_AVAILABLE if NOT_AVAILABLE in (low, high) else f"[{low}, {high}]"
    differences = {name: Interval(interval.difference, None, None) for name, interval in intervals.items()}
    return [Row("difference", differences), Row("95% interval", bounds)]


def comparison_table(rows: Sequence[Row], columns: Sequence[str], title: str = "") -> Table:
    """A table for `rich.console.Console.print`, values in %; without rows only its head."""
    table = Table(title=Text(title) if title else None, caption="values in %", caption_justify="right")
    table.add_column("")
    for column in columns:
        table.add_column(Text(column), justify="right", no_wrap=True)
    for label, *cells in _texts(rows, columns):
        # As Text, because '[0.2]' in a plain string would be read as markup.
        table.add_row(Text(label), *(Text(cell) for cell in cells))
    return table


def markdown(rows: Sequence[Row], columns: Sequence[str], title: str = "") -> str:
    """The same as a Markdown table, ending in a newline."""
    lines = [["", *columns], ["---", *("---:" for _ in columns)], *_texts(rows, columns)]
    head = f"{title}, values in %\n\n" if title else ""
    return head + "".join(f"| {' | '.join(_escaped(text) for text in line)} |\n" for line in lines)


def csv_text(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """The same as CSV with a header line; write it with newline='' or as bytes."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["", *columns])
    writer.writerows(_texts(rows, columns))
    return stream.getvalue()


def _texts(rows: Sequence[Row], columns: Sequence[str]) -> list[list[str]]:
    return [[row.label, *(cell_text(row.cells.get(column)) for column in columns)] for row in rows]


def _percent(value: float | None, *, signed: bool = False) -> str:
    if value is None or not math.isfinite(value):
        return NOT_AVAILABLE
    # Rounding first, and adding zero, so that no '-0.0' is printed.
    percent = round(100 * value, 1) + 0.0
    return f"{percent:+.1f}" if signed else f"{percent:.1f}"


def _escaped(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())
