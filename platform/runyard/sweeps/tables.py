"""A sweep's lines, each with its baseline, as a table beside the paper's: pure arithmetic over results and resamples.

A line is a row of the table with one choice of axes: its trials differ in their seeds alone, and it shows their mean.
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from detector.data.cache import load_dataset
from detector.errors import ConfigError
from detector.evaluation.bootstrap import Interval
from runyard.reports.paper import EvaluationSet, PaperTable
from runyard.reports.tables import Cell, Row, Spread
from runyard.spec import ExperimentSpec, digest, to_dict
from runyard.sweeps.resampling import METRICS, RESAMPLES, ResampledAP, mean_difference
from runyard.sweeps.results import SweepResult, TrialResult

COLUMNS = ("AP", "AP50", "AP75", "AP90")
"""Of a table that is none of the paper's."""
_MOST_NAMES = 3
_INDENT = "\N{NO-BREAK SPACE}\N{NO-BREAK SPACE}"

ServerResults = Mapping[str, Mapping[str, float]]
"""By row: what COCO's evaluation server answered for its test-dev detections, in %, by column."""


@dataclass(frozen=True)
class Line:
    """One line of a table."""

    name: str
    results: tuple[TrialResult, ...]
    """Those of its trials that have metrics, by seed."""
    planned: int
    """Its trials in all."""

    @property
    def spec(self) -> ExperimentSpec:
        """Of its first trial."""
        return self.results[0].spec

    @property
    def label(self) -> str:
        """The name, with what a number in it means, and how many of its seeds there are where some are missing."""
        name = f"alpha {self.name}" if self.alpha is not None and self.name[0].isdigit() else self.name
        missing = len(self.results) < self.planned
        return f"{name} ({len(self.results)} of {self.planned} seeds)" if missing else name

    def spread(self, metric: str) -> Spread:
        """Mean over the seeds, and the sample's standard deviation where there are two or more."""
        values = [r.metrics[metric] for r in self.results if r.metrics and metric in r.metrics]
        if not values:
            return Spread(None, None)
        return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)

    @property
    def alpha(self) -> float | None:
        """The alpha that ranks its boxes; None for the baseline, for p * IoU, and for the oracle."""
        scoring = self.spec.scoring
        ranked = self.spec.model.iou_head and scoring.confidence == "alpha" and not self.results[0].oracle
        return scoring.alpha if ranked else None

    @cached_property
    def images(self) -> tuple[str, int, int, int]:
        """Name, images, classes and annotated objects of what its numbers are of."""
        dataset = load_dataset(self.results[0].folder.dataset("val"))
        return dataset.name, len(dataset), len(dataset.categories), len(dataset.labels)


def lines_of(results: Sequence[TrialResult]) -> list[Line]:
    """The results by line, in order of first appearance; lines without any metrics are left out."""
    groups: dict[str, list[TrialResult]] = {}
    for result in results:
        groups.setdefault(result.line, []).append(result)
    lines = [Line(name, tuple(r for r in group if r.metrics is not None), len(group)) for name, group in groups.items()]
    return [line for line in lines if line.results]


def baseline_of(line: Line, lines: Sequence[Line]) -> Line | None:
    """The line without an IoU head that is otherwise trained like this one; None where there is none, or it is it."""
    if not line.spec.model.iou_head:
        return None
    return next((o for o in lines if not o.spec.model.iou_head and _setting(o.spec) == _setting(line.spec)), None)


def gains_of(
    line: Line, baseline: Line, columns: Sequence[str], resampled: Callable[[TrialResult], ResampledAP]
) -> dict[str, Interval]:
    """Those of the columns that can be resampled: the line's minus the baseline's, means over their seeds."""
    before, after = ([resampled(result) for result in side.results] for side in (baseline, line))
    return {column: mean_difference(before, after, column) for column in columns if column in METRICS}


@dataclass(frozen=True)
class SweepTable:
    """One table, ready to be printed or written."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    csv: str
    """Every number of it, one a line."""


def make_table(
    sweep: SweepResult,
    lines: Sequence[Line],
    paper: PaperTable | None,
    resampled: Callable[[TrialResult], ResampledAP],
    server: ServerResults | None = None,
) -> SweepTable:
    """Ours, the paper's where they may stand beside each other, and the difference to the baseline with its interval.

    Args:
        paper: the table that the rows reproduce, if any.
        resampled: gives a result's AP on other draws of its images.
        server: for Table 1, whose numbers are test-dev's.

    Raises ConfigError where `server` names a row that is none.
    """
    columns = paper.columns if paper else COLUMNS
    server = _checked(server or {}, lines, columns)
    gain = "AP - baseline" if not paper or paper.protocol == "coco" else "COCO AP - baseline"
    compared = [_compare(sweep, line, lines, paper, columns, resampled) for line in lines]
    rows = [
        row for one in compared for row in _rows(one, paper, columns, gain, server.get(one.line.spec.paper.row, {}))
    ]
    reasons = dict.fromkeys(one.reason for one in compared if one.reason is not None and one.printed)
    return SweepTable(
        title=_title(sweep, lines, paper),
        columns=(*columns, gain) if any(row.cells.get(gain) for row in rows) else columns,
        rows=tuple(rows),
        notes=tuple(_notes(lines, paper, list(reasons))),
        csv=_csv(compared, columns),
    )


def why_not_comparable(sweep: SweepResult, line: Line, paper: PaperTable) -> str | None:
    """Why a line's numbers may not stand beside a table of the paper; None where they may."""
    if sweep.smoke:
        return "a smoke run, whose numbers mean nothing"
    if line.spec.paper.changed:
        return f"other settings ({_few(line.spec.paper.changed)})"
    if not _is_of(line, paper.evaluated_on):
        return f"other images ({line.images[0]}: {line.images[1]:,})"
    return None


@dataclass(frozen=True)
class _Compared:
    """A line, its baseline and the paper's row."""

    line: Line
    ours: dict[str, Spread]
    """By column."""
    gains: dict[str, Interval]
    """Over the baseline, by column; empty without one."""
    printed: dict[str, float]
    """The paper's, in %, by column; empty where it has no such row."""
    printed_gain: str
    reason: str | None
    """Why the paper's numbers may not be compared."""
    beside: bool
    """Whether they are shown all the same."""


def _compare(
    sweep: SweepResult,
    line: Line,
    lines: Sequence[Line],
    paper: PaperTable | None,
    columns: Sequence[str],
    resampled: Callable[[TrialResult], ResampledAP],
) -> _Compared:
    baseline = baseline_of(line, lines)
    gains = gains_of(line, baseline, columns, resampled) if baseline else {}
    if paper is None:
        ours = {column: line.spread(f"val/{column}") for column in columns}
        return _Compared(line, ours, gains, {}, "", "no table of the paper's", False)
    row = paper.rows.get(line.spec.paper.row)
    reason = why_not_comparable(sweep, line, paper)
    settings_differ = sweep.smoke or bool(line.spec.paper.changed)
    return _Compared(
        line,
        {column: line.spread(paper.metric(column)) for column in columns},
        gains,
        row.percent if row else {},
        _paper_gain(paper, line, baseline),
        reason,
        not settings_differ and paper.shown_beside is not None and _is_of(line, paper.shown_beside),
    )


def _rows(
    one: _Compared, paper: PaperTable | None, columns: Sequence[str], gain: str, answered: Mapping[str, float]
) -> list[Row]:
    """Ours, then the paper's and the server's where there are any."""
    rows = [Row(one.line.label, {**one.ours, gain: one.gains.get("AP", "")})]
    if paper is None or not one.printed:
        return rows
    if one.reason is None:
        against: dict[str, Cell] = {c: _against(one.printed[c], one.ours[c].mean) for c in columns if c in one.printed}
        rows.append(Row(f"{_INDENT}paper", {**against, gain: one.printed_gain}))
    elif one.beside:
        told: dict[str, Cell] = {column: f"{value:.1f}" for column, value in one.printed.items()}
        rows.append(Row(f"{_INDENT}paper, {paper.evaluated_on.name}", {**told, gain: one.printed_gain}))
    if answered:
        both = [column for column in columns if column in answered and column in one.printed]
        cells: dict[str, Cell] = {c: f"{answered[c]:.1f} ({answered[c] - one.printed[c] + 0.0:+.1f})" for c in both}
        rows.append(Row(f"{_INDENT}ours, {paper.evaluated_on.name} (server; to the paper's)", {**cells, gain: ""}))
    return rows


def _against(percent: float, mean: float | None) -> str:
    """The paper's value with ours minus it in brackets."""
    return f"{percent:.1f}" if mean is None else f"{percent:.1f} ({round(100 * mean, 1) - percent + 0.0:+.1f})"


def _setting(spec: ExperimentSpec) -> str:
    model = to_dict(spec.model)
    del model["iou_head"]
    return digest({"model": model, "optim": to_dict(spec.optim), "data": to_dict(spec.data), "protocol": spec.protocol})


def _few(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _is_of(line: Line, images: EvaluationSet) -> bool:
    return line.images[1:] == (images.images, images.classes, images.objects)


def _paper_gain(paper: PaperTable, line: Line, baseline: Line | None) -> str:
    """The paper's own difference to its baseline."""
    row, reference = line.spec.paper.row, baseline.spec.paper.row if baseline else ""
    if paper.protocol != "coco" or row not in paper.rows or reference not in paper.rows:
        return ""
    return f"{round(paper.rows[row].percent['AP'] - paper.rows[reference].percent['AP'], 1):+.1f}"


def _title(sweep: SweepResult, lines: Sequence[Line], paper: PaperTable | None) -> str:
    name = f"{paper.name}: {paper.title}" if paper else sweep.name
    images = f"{lines[0].images[0]}, {lines[0].images[1]:,} images" if lines else "no results"
    return f"{'SMOKE RUN, the numbers mean nothing. ' if sweep.smoke else ''}{name} ({images})"


def _notes(lines: Sequence[Line], paper: PaperTable | None, reasons: Sequence[str]) -> list[str]:
    notes = []
    if any(baseline_of(line, lines) for line in lines):
        notes.append(
            f"The difference to the baseline has a 95% interval from {RESAMPLES:,} paired resamples of the images: "
            "what other images would change, not what other seeds of training would."
        )
    seeds = max((len(line.results) for line in lines), default=0)
    one = "One seed: what another training would give is not known."
    notes.append(f"Mean ± standard deviation over {seeds} seeds." if seeds > 1 else one)
    if any(line.results[0].oracle for line in lines):
        notes.append("Oracle: the same boxes ranked by their true IoU, the headroom of a better IoU prediction.")
    if paper:
        notes += [
            f"Not comparable with the paper's {paper.name} ({paper.evaluated_on.name}): {reason}." for reason in reasons
        ]
    return notes


def _checked(server: ServerResults, lines: Sequence[Line], columns: Sequence[str]) -> ServerResults:
    known = [line.spec.paper.row for line in lines]
    for row, values in server.items():
        if row not in known:
            remedy = f"Rows: {', '.join(known)}"
            raise ConfigError("is no row of this table", field="server_results", value=row, remedy=remedy)
        for column, value in values.items():
            if column not in columns or isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(
                    "must be numbers in %", field=f"server_results.{row}.{column}", value=value,
                    remedy=f"Columns: {', '.join(columns)}",
                )  # fmt: skip
    return server


def _numbers(ours: Spread, percent: float | None, reason: str | None) -> list[object]:
    """Our mean and deviation, the paper's value, the difference, in %."""
    mean, std = (None if value is None else round(100 * value, 4) for value in (ours.mean, ours.std))
    comparable = reason is None and percent is not None and mean is not None
    return [mean, std, percent, round(mean - percent, 4) if comparable else None]  # type: ignore[operator]


def _bounds(interval: Interval | None) -> list[float | None]:
    parts = (interval.difference, interval.low, interval.high) if interval else (None, None, None)
    return [None if part is None else round(100 * part, 4) for part in parts]


def _csv(compared: Sequence[_Compared], columns: Sequence[str]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["line", "seeds", "metric", "ours", "std", "paper", "ours_minus_paper", "ours_minus_baseline", "low", "high",
         "not_comparable_because"]
    )  # fmt: skip
    for one in compared:
        for column in columns:
            numbers = _numbers(one.ours[column], one.printed.get(column), one.reason)
            bounds = _bounds(one.gains.get(column))
            writer.writerow(
                [one.line.name, len(one.line.results), column, *numbers, *bounds, one.reason or ""]
            )  # fmt: skip
    return stream.getvalue()
