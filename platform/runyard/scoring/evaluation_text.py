"""The report of `runyard evaluate` as text tables."""

import io
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from detector.errors import printable


def render_report(report: dict[str, Any], width: int = 120) -> str:
    """The report of `evaluate_files` in percent; 'n/a' without ground truth. Warnings come last."""
    settings = ", ".join(f"{name} {value}" for name, value in report["settings"].items())
    counts = ", ".join(
        f"{report[name]:,} {name.replace('_', ' ')}" for name in ("images", "ground_truth", "detections")
    )
    whole = Table()
    whole.add_column("metric")
    whole.add_column("%", justify="right")
    for name, value in report["metrics"].items():
        whole.add_row(name, _percent(value))

    names = [name for name in next(iter(report["per_class"]), {}) if name not in ("id", "name")]
    by_class = Table()
    by_class.add_column("id", justify="right")
    by_class.add_column("class", overflow="fold")
    for name in names:
        by_class.add_column(name, justify="right")
    for row in report["per_class"]:
        by_class.add_row(str(row["id"]), _harmless(row["name"]), *(_percent(row[name]) for name in names))

    correlations = Table()
    correlations.add_column("correlation with true IoU")
    for heading in ("Pearson", "Spearman", "n"):
        correlations.add_column(heading, justify="right")
    for name, values in report["correlation_with_true_iou"].items():
        coefficients = (values["pearson"], values["spearman"])
        shown = ["n/a" if value is None else f"{value:.4f}" for value in coefficients]
        correlations.add_row(name, *shown, f"{values['n']:,}")

    further = [_plain_table(name, values) for name, values in report["further_metrics"].items()]
    warnings = "".join(f"warning: {printable(text)}\n" for text in report["warnings"])
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as capture:
        title = f"{report['protocol']} ({settings})\n{counts}"
        console.print(title, whole, by_class, correlations, *further, Text(warnings.rstrip()), markup=False)
    return capture.get()


def _plain_table(title: str, values: dict[str, float | None]) -> Table:
    table = Table()
    table.add_column(title)
    table.add_column("value", justify="right")
    for name, value in values.items():
        table.add_row(name, "n/a" if value is None else f"{value:.4g}")
    return table


def _harmless(name: str) -> Text:
    """A class name as it stands: markup such as '[red]' is not obeyed, no escape sequence reaches the terminal."""
    return Text("".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name))


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.2f}"
