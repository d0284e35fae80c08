"""Tables: the same text on the terminal, in Markdown and in LaTeX."""

import io
import math

import pytest
from rich.console import Console

from detector.evaluation.bootstrap import Interval
from runyard.reports.render import Cell, Spread, TextRow, cell_text, comparison_table, latex, markdown

ROWS = [
    TextRow("baseline", {"AP": 0.3586, "AP50": 0.558}),
    TextRow("IoU-aware | [bold]", {"AP": Spread(0.3694, 0.002), "AP50": None, "AP90": math.nan}),
    TextRow("difference", {"AP": Interval(0.0108, 0.002, 0.0196)}),
]
COLUMNS = ["AP", "AP50", "AP90"]


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (0.3586, "35.9"),
        (1, "100.0"),
        (0.0, "0.0"),
        (-1e-9, "0.0"),
        (None, "n/a"),
        (math.nan, "n/a"),
        (math.inf, "n/a"),
        ("36.9*", "36.9*"),
        (Spread(0.369, 0.0021), "36.9 ± 0.2"),
        (Spread(0.369, None), "36.9"),
        (Spread(None, 0.1), "n/a"),
        (Interval(0.008, 0.002, 0.014), "+0.8 [+0.2, +1.4]"),
        (Interval(-0.008, -0.02, 0.0), "-0.8 [-2.0, +0.0]"),
        (Interval(0.008, None, None), "+0.8"),
        (Interval(None, 0.1, 0.2), "n/a"),
    ],
)
def test_a_cell(cell: Cell, text: str) -> None:
    assert cell_text(cell) == text


def test_on_the_terminal_brackets_are_no_markup() -> None:
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(comparison_table(ROWS, COLUMNS, "Table [2]"))
    text = console.export_text()
    for part in ("Table [2]", "values in %", "IoU-aware | [bold]", "36.9 ± 0.2", "+1.1 [+0.2, +2.0]", "n/a"):
        assert part in text


def test_markdown() -> None:
    assert markdown(ROWS, COLUMNS, "Table 2").splitlines() == [
        "Table 2, values in %",
        "",
        "|  | AP | AP50 | AP90 |",
        "| --- | ---: | ---: | ---: |",
        "| baseline | 35.9 | 55.8 | n/a |",
        "| IoU-aware \\| [bold] | 36.9 ± 0.2 | n/a | n/a |",
        "| difference | +1.1 [+0.2, +2.0] | n/a | n/a |",
    ]


def test_latex_escapes_what_latex_would_read() -> None:
    rows = [
        TextRow("a_b & 50% {x} \\ ~^#$", {"AP": Spread(0.369, 0.002)}),
        TextRow("gain", {"AP": Interval(0.01, 0.0, 0.02)}),
    ]
    assert latex(rows, ["AP"], "Table_2").splitlines() == [
        r"\begin{table}",
        r"  \centering",
        r"  \caption{Table\_2, values in \%}",
        r"  \begin{tabular}{lr}",
        r"    \toprule",
        r"     & AP \\",
        r"    \midrule",
        r"    a\_b \& 50\% \{x\} \textbackslash{} \textasciitilde{}\textasciicircum{}\#\$ & 36.9 $\pm$ 0.2 \\",
        r"    gain & +1.0 {[}+0.0, +2.0] \\",
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]


def test_without_rows_only_the_head_is_left() -> None:
    assert markdown([], ["AP"]).count("\n") == 2
    assert latex([], ["AP"]).count("&") == 1
    assert comparison_table([], ["AP"]).row_count == 0
