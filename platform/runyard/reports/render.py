"""Rows of metrics as a table for the terminal, for Markdown and for LaTeX; the same text in all three.

Values are fractions from 0 to 1 and are shown in %, with one decimal.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from detector.evaluation.bootstrap import Interval

NOT_AVAILABLE = "n/a"

_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "[": "{[}",
}  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds."""

    mean: float | None
    std: float | None


Cell = float | int | str | Spread | Interval | None
"""A fraction, a text as it is, mean and deviation, a difference with its interval, or None where there is nothing."""


@dataclass(frozen=True)
class TextRow:
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


def comparison_table(rows: Sequence[TextRow], columns: Sequence[str], title: str = "") -> Table:
    """A table for `rich.console.Console.print`, values in %; without rows only its head."""
    table = Table(title=Text(title) if title else None, caption="values in %", caption_justify="right")
    table.add_column("")
    for column in columns:
        table.add_column(Text(column), justify="right", no_wrap=True)
    for label, *cells in _texts(rows, columns):
        # As Text, because '[0.2]' in a plain string would be read as markup.
        table.add_row(Text(label), *(Text(cell) for cell in cells))
    return table


def print_whole(table: Table, console: Console) -> None:
    """Prints a table as wide as it is, also where that is more than the terminal: half a number misleads."""
    needed = console.measure(table, options=console.options.update(max_width=1000)).maximum
    if needed > console.width:
        console = Console(file=console.file, width=needed, force_terminal=console.is_terminal)
    console.print(table)


def markdown(rows: Sequence[TextRow], columns: Sequence[str], title: str = "", unit: str = "values in %") -> str:
    """The same as a Markdown table, ending in a newline."""
    lines = [["", *columns], ["---", *("---:" for _ in columns)], *_texts(rows, columns)]
    head = f"{', '.join(filter(None, (title, unit)))}\n\n" if title else ""
    return head + "".join(f"| {' | '.join(_escaped(text) for text in line)} |\n" for line in lines)


def latex(rows: Sequence[TextRow], columns: Sequence[str], title: str = "") -> str:
    """The same as a LaTeX table for the package booktabs, ending in a newline."""
    lines = [
        r"\begin{table}",
        r"  \centering",
        *([rf"  \caption{{{_latex_escaped(title)}, values in \%}}"] if title else []),
        rf"  \begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"    \toprule",
        rf"    {' & '.join(['', *map(_latex_escaped, columns)])} \\",
        r"    \midrule",
        *(rf"    {' & '.join(map(_latex_escaped, line))} \\" for line in _texts(rows, columns)),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _texts(rows: Sequence[TextRow], columns: Sequence[str]) -> list[list[str]]:
    return [[row.label, *(cell_text(row.cells.get(column)) for column in columns)] for row in rows]


def _percent(value: float | None, *, signed: bool = False) -> str:
    if value is None or not math.isfinite(value):
        return NOT_AVAILABLE
    # Rounding first, and adding zero, so that no '-0.0' is printed.
    percent = round(100 * value, 1) + 0.0
    return f"{percent:+.1f}" if signed else f"{percent:.1f}"


def _escaped(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())


def _latex_escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
