"""A sweep's lines as a table beside the paper's: pure arithmetic over results and resamples."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detector.errors import ConfigError
from detector.evaluation.bootstrap import Interval
from runyard.paper import PaperTable
from runyard.reports.lines import Line, Resampled, baseline_of, gains_of
from runyard.reports.render import Cell, Row, Spread
from runyard.reports.resampling import RESAMPLES
from runyard.scoring.results import SweepResult

COLUMNS = ("AP", "AP50", "AP75", "AP90")
"""Of a table that is none of the paper's."""
_COCO_AP = "COCO AP"
_MOST_NAMES = 3

ServerResults = Mapping[str, Mapping[str, float]]
"""By row: what COCO's evaluation server answered for its test-dev detections, in %, by column."""


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
    resampled: Resampled,
    server: ServerResults | None = None,
) -> SweepTable:
    """Ours, the paper's where they may stand beside each other, and the difference to the baseline with its interval.

    Args:
        paper: the table that the rows reproduce, if any.
        resampled: AP on other draws of the images, where they could be drawn.
        server: for Table 1, whose numbers are test-dev's.

    Raises ConfigError where `server` names a row that is none.
    """
    columns = paper.columns if paper else COLUMNS
    server = _checked(server or {}, lines, columns)
    shown = columns if not paper or paper.protocol == "coco" else (*columns, _COCO_AP)
    gain = f"{_resampled_column(paper)} - baseline"
    compared = [_compare(sweep, line, lines, paper, columns, resampled) for line in lines]
    rows = [
        row for one in compared for row in _rows(one, paper, columns, gain, server.get(one.line.spec.paper.row, {}))
    ]
    reasons = dict.fromkeys(one.reason for one in compared if one.reason is not None and one.printed)
    return SweepTable(
        title=_title(sweep, lines, paper),
        columns=(*shown, gain) if any(row.cells.get(gain) for row in rows) else shown,
        rows=tuple(rows),
        notes=tuple(_notes(sweep, lines, paper, list(reasons))),
        csv=_csv(compared, shown, server),
    )


def why_not_comparable(sweep: SweepResult, line: Line, paper: PaperTable) -> str | None:
    """Why a line's numbers may not stand beside a table of the paper; None where they may."""
    if sweep.smoke:
        return "a smoke run, whose numbers mean nothing"
    if line.spec.paper.changed:
        return f"other settings ({_few(line.spec.paper.changed)})"
    if not line.evaluated_on.are(paper.evaluated_on):
        return f"other images ({line.evaluated_on.name}: {line.evaluated_on.images:,})"
    if not line.trained_on.are(paper.trained_on):
        return f"trained on other images ({line.trained_on.name}: {line.trained_on.images:,})"
    return None


@dataclass(frozen=True)
class _Compared:
    """A line, its baseline and the paper's row."""

    line: Line
    ours: dict[str, Spread]
    """By column."""
    gains: dict[str, Interval]
    """COCO's over the baseline's, by column; empty without one."""
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
    resampled: Resampled,
) -> _Compared:
    baseline = baseline_of(line, lines)
    gains = gains_of(line, baseline, columns, resampled) if baseline else {}
    if paper is None:
        ours = {column: line.spread(f"val/{column}") for column in columns}
        return _Compared(line, ours, gains, {}, "", "no table of the paper's", False)
    row = paper.rows.get(line.spec.paper.row)
    reason = why_not_comparable(sweep, line, paper)
    same_settings = not sweep.smoke and not line.spec.paper.changed
    ours = {column: line.spread(paper.metric(column)) for column in columns}
    if paper.protocol != "coco":  # intervals are of COCO's AP
        ours[_COCO_AP] = line.spread("val/AP")
        gains = {_COCO_AP: gains["AP"]} if "AP" in gains else {}
    return _Compared(
        line,
        ours,
        gains,
        row.percent if row else {},
        _paper_gain(paper, line, baseline),
        reason,
        same_settings and paper.shown_beside is not None and line.evaluated_on.are(paper.shown_beside),
    )


def _rows(
    one: _Compared, paper: PaperTable | None, columns: Sequence[str], gain: str, answered: Mapping[str, float]
) -> list[Row]:
    """Ours, then the paper's and the server's where there are any."""
    rows = [Row(one.line.label, {**one.ours, gain: one.gains.get(_resampled_column(paper), "")})]
    if paper is None or not one.printed:
        return rows
    blank: dict[str, Cell] = dict.fromkeys((*one.ours, gain), "")  # what the paper does not have is not missing
    if one.reason is None:
        against: dict[str, Cell] = {c: _against(one.printed[c], one.ours[c].mean) for c in columns if c in one.printed}
        rows.append(Row("- paper", blank | against | {gain: one.printed_gain}))
    elif one.beside:
        told: dict[str, Cell] = {column: f"{value:.1f}" for column, value in one.printed.items()}
        rows.append(Row(f"- paper, {paper.evaluated_on.name}", blank | told | {gain: one.printed_gain}))
    if answered and one.beside:
        both = [column for column in columns if column in answered and column in one.printed]
        cells: dict[str, Cell] = {c: f"{answered[c]:.1f} ({answered[c] - one.printed[c] + 0.0:+.1f})" for c in both}
        rows.append(Row(f"- ours, {paper.evaluated_on.name} (server; to the paper's)", blank | cells))
    return rows


def _against(percent: float, mean: float | None) -> str:
    """The paper's value with ours minus it in brackets."""
    return f"{percent:.1f}" if mean is None else f"{percent:.1f} ({round(100 * mean, 1) - percent + 0.0:+.1f})"


def _few(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _paper_gain(paper: PaperTable, line: Line, baseline: Line | None) -> str:
    """The paper's own difference to its baseline."""
    row, reference = line.spec.paper.row, baseline.spec.paper.row if baseline else ""
    if paper.protocol != "coco" or row not in paper.rows or reference not in paper.rows:
        return ""
    return f"{round(paper.rows[row].percent['AP'] - paper.rows[reference].percent['AP'], 1):+.1f}"


def _title(sweep: SweepResult, lines: Sequence[Line], paper: PaperTable | None) -> str:
    name = f"{paper.name}: {paper.title}" if paper else sweep.name
    found = lines[0].evaluated_on if lines else None
    images = f"{found.name}, {found.images:,} images" if found else "no results"
    return f"{'SMOKE RUN, the numbers mean nothing. ' if sweep.smoke else ''}{name} ({images})"


def _resampled_column(paper: PaperTable | None) -> str:
    """The column whose difference to the baseline is shown."""
    return "AP" if not paper or paper.protocol == "coco" else _COCO_AP


def _notes(sweep: SweepResult, lines: Sequence[Line], paper: PaperTable | None, reasons: Sequence[str]) -> list[str]:
    notes = []
    without = [result.label for result in sweep.results if result.metrics is None]
    if without:
        notes.append(f"No results yet: {', '.join(without)}.")
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


def _csv(compared: Sequence[_Compared], columns: Sequence[str], server: ServerResults) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["line", "seeds", "metric", "ours", "std", "paper", "ours_minus_paper", "ours_minus_baseline", "low", "high",
         "not_comparable_because", "ours_by_the_server"]
    )  # fmt: skip
    for one in compared:
        answered = server.get(one.line.spec.paper.row, {}) if one.beside else {}
        for column in columns:
            numbers = _numbers(one.ours[column], one.printed.get(column), one.reason)
            gain = _bounds(one.gains.get(column))
            ends = [one.line.name, len(one.line.results), column], [one.reason or "", answered.get(column)]
            writer.writerow([*ends[0], *numbers, *gain, *ends[1]])
    return stream.getvalue()
