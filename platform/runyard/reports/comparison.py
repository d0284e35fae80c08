"""A sweep's rows as a table with the paper's numbers: pure arithmetic over results and resamples."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detector.errors import ConfigError
from detector.evaluation.bootstrap import Interval
from runyard.paper import PaperTable
from runyard.reports.render import Cell, Spread, TextRow
from runyard.reports.resampling import RESAMPLES
from runyard.reports.rows import Resampled, TableRow, baseline_of, gains_of, why_no_baseline
from runyard.scoring.results import SweepResult

COLUMNS = ("AP", "AP50", "AP75", "AP90")
"""Columns of a table that is not one of the paper's."""
_COCO_AP = "COCO AP"
_MOST_NAMES = 3

ServerResults = Mapping[str, Mapping[str, float]]
"""Answers of COCO's evaluation server for test-dev detections, in %, by row and column."""


@dataclass(frozen=True)
class SweepTable:
    """One table, ready to be printed or written."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[TextRow, ...]
    notes: tuple[str, ...]
    csv: str
    """Every number, one a line."""


def make_table(
    sweep: SweepResult,
    rows: Sequence[TableRow],
    paper: PaperTable | None,
    resampled: Resampled,
    server: ServerResults | None = None,
) -> SweepTable:
    """Our numbers, the paper's where they may be compared, and the difference to the baseline with its interval.

    Args:
        paper: the table that the rows reproduce, if any.
        resampled: AP on other draws of the images, where they could be drawn.
        server: for Table 1, whose numbers are test-dev's.

    Raises ConfigError where `server` names a row that is none.
    """
    columns = paper.columns if paper else COLUMNS
    server = _checked(server or {}, rows, columns)
    shown = columns if not paper or paper.protocol == "coco" else (*columns, _COCO_AP)
    gain = f"{_resampled_column(paper)} - baseline"
    compared = [_compare(sweep, row, rows, paper, columns, resampled) for row in rows]
    texts = [
        text for one in compared for text in _texts(one, paper, columns, gain, server.get(one.row.spec.paper.row, {}))
    ]
    reasons = dict.fromkeys(one.reason for one in compared if one.reason is not None and one.printed)
    return SweepTable(
        title=_title(sweep, rows, paper),
        columns=(*shown, gain) if any(text.cells.get(gain) for text in texts) else shown,
        rows=tuple(texts),
        notes=tuple(_notes(sweep, rows, paper, list(reasons))),
        csv=_csv(compared, shown, server),
    )


def why_not_comparable(sweep: SweepResult, row: TableRow, paper: PaperTable) -> str | None:
    """Reason why a row's numbers may not be compared with a table of the paper; None where they may."""
    if sweep.smoke:
        return "a smoke run, whose numbers mean nothing"
    if row.spec.paper.changed:
        return f"other settings ({_shorten(row.spec.paper.changed)})"
    if not row.evaluated_on.are(paper.evaluated_on):
        return f"other images ({row.evaluated_on.name}: {row.evaluated_on.images:,})"
    if not row.trained_on.are(paper.trained_on):
        return f"trained on other images ({row.trained_on.name}: {row.trained_on.images:,})"
    return None


@dataclass(frozen=True)
class _Compared:
    """A row, its baseline and the paper's row."""

    row: TableRow
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
    row: TableRow,
    rows: Sequence[TableRow],
    paper: PaperTable | None,
    columns: Sequence[str],
    resampled: Resampled,
) -> _Compared:
    baseline = baseline_of(row, rows)
    gains = gains_of(row, baseline, columns, resampled) if baseline else {}
    if paper is None:
        ours = {column: row.spread(f"val/{column}") for column in columns}
        return _Compared(row, ours, gains, {}, "", "no table of the paper's", False)
    printed = paper.rows.get(row.spec.paper.row)
    reason = why_not_comparable(sweep, row, paper)
    same_settings = not sweep.smoke and not row.spec.paper.changed
    ours = {column: row.spread(paper.metric(column)) for column in columns}
    if paper.protocol != "coco":  # intervals are of COCO's AP
        ours[_COCO_AP] = row.spread("val/AP")
        gains = {_COCO_AP: gains["AP"]} if "AP" in gains else {}
    return _Compared(
        row,
        ours,
        gains,
        printed.percent if printed else {},
        _paper_gain(paper, row, baseline),
        reason,
        same_settings and paper.shown_beside is not None and row.evaluated_on.are(paper.shown_beside),
    )


def _texts(
    one: _Compared, paper: PaperTable | None, columns: Sequence[str], gain: str, answered: Mapping[str, float]
) -> list[TextRow]:
    """Ours, then the paper's and the server's where there are any."""
    texts = [TextRow(one.row.label, {**one.ours, gain: one.gains.get(_resampled_column(paper), "")})]
    if paper is None or not one.printed:
        return texts
    blank: dict[str, Cell] = dict.fromkeys((*one.ours, gain), "")  # what the paper does not have is not missing
    if one.reason is None:
        against: dict[str, Cell] = {c: _against(one.printed[c], one.ours[c].mean) for c in columns if c in one.printed}
        texts.append(TextRow("- paper", blank | against | {gain: one.printed_gain}))
    elif one.beside:
        told: dict[str, Cell] = {column: f"{value:.1f}" for column, value in one.printed.items()}
        texts.append(TextRow(f"- paper, {paper.evaluated_on.name}", blank | told | {gain: one.printed_gain}))
    if answered and one.beside:
        both = [column for column in columns if column in answered and column in one.printed]
        cells: dict[str, Cell] = {c: f"{answered[c]:.1f} ({answered[c] - one.printed[c] + 0.0:+.1f})" for c in both}
        texts.append(TextRow(f"- ours, {paper.evaluated_on.name} (server; to the paper's)", blank | cells))
    return texts


def _against(percent: float, mean: float | None) -> str:
    """The paper's value with ours minus it in brackets."""
    return f"{percent:.1f}" if mean is None else f"{percent:.1f} ({round(100 * mean, 1) - percent + 0.0:+.1f})"


def _shorten(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _paper_gain(paper: PaperTable, row: TableRow, baseline: TableRow | None) -> str:
    """The paper's own difference to its baseline."""
    key, reference = row.spec.paper.row, baseline.spec.paper.row if baseline else ""
    if paper.protocol != "coco" or key not in paper.rows or reference not in paper.rows:
        return ""
    return f"{round(paper.rows[key].percent['AP'] - paper.rows[reference].percent['AP'], 1):+.1f}"


def _title(sweep: SweepResult, rows: Sequence[TableRow], paper: PaperTable | None) -> str:
    name = f"{paper.name}: {paper.title}" if paper else sweep.name
    found = rows[0].evaluated_on if rows else None
    images = f"{found.name}, {found.images:,} images" if found else "no results"
    return f"{'SMOKE RUN, the numbers mean nothing. ' if sweep.smoke else ''}{name} ({images})"


def _resampled_column(paper: PaperTable | None) -> str:
    """The column whose difference to the baseline is shown."""
    return "AP" if not paper or paper.protocol == "coco" else _COCO_AP


def _notes(sweep: SweepResult, rows: Sequence[TableRow], paper: PaperTable | None, reasons: Sequence[str]) -> list[str]:
    notes = []
    without = [sweep.labels[result.id] for result in sweep.results if result.metrics is None]
    if without:
        notes.append(f"No results yet: {', '.join(without)}.")
    if any(baseline_of(row, rows) for row in rows):
        notes.append(
            f"The difference to the baseline has a 95% interval from {RESAMPLES:,} paired resamples of the images: "
            "what other images would change, not what other seeds of training would."
        )
    without_difference: dict[str, list[str]] = {}
    for row in rows:
        if (reason := why_no_baseline(row, rows)) is not None:
            without_difference.setdefault(reason, []).append(row.label)
    notes += [f"No difference for {', '.join(names)}: {why}." for why, names in without_difference.items()]
    notes.append(_seeds_note(rows))
    commits = dict.fromkeys(commit[:12] for row in rows for commit in row.commits)
    if len(commits) > 1:
        notes.append(f"Trained at different commits: {', '.join(commits)}.")
    if any(row.oracle for row in rows):
        notes.append("Oracle: the same boxes ranked by their true IoU, the headroom of a better IoU prediction.")
    if paper:
        notes += [
            f"Not comparable with the paper's {paper.name} ({paper.evaluated_on.name}): {reason}." for reason in reasons
        ]
    return notes


def _seeds_note(rows: Sequence[TableRow]) -> str:
    counts = sorted({len(row.results) for row in rows})
    if not counts or counts[-1] == 1:
        return "One seed: what another training would give is not known."
    number = str(counts[-1]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    differences = "" if len(counts) == 1 else " A difference is over the seeds that both rows have."
    return f"Mean ± standard deviation over {number} seeds.{differences}"


def _checked(server: ServerResults, rows: Sequence[TableRow], columns: Sequence[str]) -> ServerResults:
    known = [row.spec.paper.row for row in rows]
    for key, values in server.items():
        if key not in known:
            remedy = f"Rows: {', '.join(known)}"
            raise ConfigError("unknown row", field="server_results", value=key, remedy=remedy)
        for column, value in values.items():
            if column not in columns or isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(
                    "must be numbers in %", field=f"server_results.{key}.{column}", value=value,
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
        answered = server.get(one.row.spec.paper.row, {}) if one.beside else {}
        for column in columns:
            numbers = _numbers(one.ours[column], one.printed.get(column), one.reason)
            gain = _bounds(one.gains.get(column))
            ends = [one.row.name, len(one.row.results), column], [one.reason or "", answered.get(column)]
            writer.writerow([*ends[0], *numbers, *gain, *ends[1]])
    return stream.getvalue()
