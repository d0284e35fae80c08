"""The rows as a page of Markdown, for `benchmarks/results/`."""

from collections.abc import Sequence
from typing import Any

from benchmarks.rows import AnyRow, NotRun, amounts, statistic


def page(rows: Sequence[AnyRow], machine: dict[str, Any], *, command: str, seconds: float) -> str:
    """Command, machine, versions, and a table with a line a row."""
    lines = [
        f"# {command}",
        "",
        f"It took {seconds:.0f} s. Ours and the other were measured in turn in one process tree. In brackets the 95 % "
        "interval of the median; a goal counts as met only if the worse end meets it.",
        "",
        "; ".join(f"{name} {value}" for name, value in machine.items()),
        "",
        "| | what | ours / other | median [95 % interval] | goal | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if isinstance(row, NotRun):
            cells = [row.key, row.what, "", "", "", f"{row.reason}: not measured"]
        else:
            what = "; ".join(part for part in (row.what, row.size, row.checked, row.note) if part)
            hidden = row.withholds and not row.is_relative
            busy = f" ({row.busy:.1f} cores busy)" if row.busy is not None and row.was_disturbed else ""
            cells = [
                row.key,
                what,
                ", ".join(amounts(row)),
                "(busy)" if hidden else statistic(row),
                row.goal_text,
                row.verdict + busy,
            ]
        lines.append(f"| {' | '.join(cells)} |")
    if any(not isinstance(row, NotRun) and row.was_disturbed for row in rows):
        lines += ["", "(busy): other processes were at work before or after this row; absolute times are withheld."]
    return "\n".join(lines) + "\n"
