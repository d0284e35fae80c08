"""Two finished runs side by side: their metrics, and the difference with its interval."""

from pathlib import Path

from rich.console import Console

from detector.evaluation.bootstrap import paired_bootstrap
from runyard.experiment import RunOutcome
from runyard.layout import atomic_write_text
from runyard.reports.plots import plot_ap_by_iou
from runyard.reports.tables import Row, comparison_table, csv_text, difference_rows, markdown

COLUMNS = ("AP", "AP50", "AP75", "AP90")


def compare(baseline: RunOutcome, other: RunOutcome, folder: Path, console: Console | None = None) -> None:
    """Prints the table of two runs on the same validation images and writes it, with a plot, to `folder`.

    The last rows are the difference and its 95% interval from a paired bootstrap over the images: they say what another
    draw of validation images would change, not what another seed of training would.
    """
    console = console or Console()
    dataset, baseline_table = baseline.load_detections()
    _, other_table = other.load_detections()
    rows = [
        Row(outcome.spec.recipe, {name: outcome.metrics.get(f"val/{name}") for name in COLUMNS})
        for outcome in (baseline, other)
    ]
    intervals = paired_bootstrap(dataset, baseline_table, other_table, metrics=COLUMNS)
    rows += difference_rows(intervals)
    title = f"{other.spec.recipe} against {baseline.spec.recipe}, {len(dataset)} held-out images"
    console.print(comparison_table(rows, COLUMNS, title))
    atomic_write_text(folder / "table.md", markdown(rows, COLUMNS, title))
    atomic_write_text(folder / "table.csv", csv_text(rows, COLUMNS))
    plot = plot_ap_by_iou({o.spec.recipe: o.metrics for o in (baseline, other)}, folder / "ap_by_iou.png", title=title)
    console.print("The interval is over validation images; another seed of training may change the sign.", style="dim")
    plots = [plot, *(p for o in (baseline, other) for p in (o.evaluation.correlation_plot, *o.evaluation.galleries()))]
    for path in plots:
        console.print(f"  {path}", highlight=False, soft_wrap=True)
