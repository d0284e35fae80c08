"""Report at a sweep's end, which `runyard table` makes again: tables with the paper's numbers, plots, one page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from detector.errors import ConfigError, InputError
from detector.evaluation.correlation import confidence_correlation, true_ious
from detector.files import write_text
from runyard.paper import PaperTable
from runyard.reports.alpha_choice import alpha_groups, choice_sentences
from runyard.reports.comparison import COLUMNS, ServerResults, make_table, why_not_comparable
from runyard.reports.plots import ConfidencePanel, plot_ap_by_iou, plot_confidence_panels
from runyard.reports.render import Spread, TextRow, comparison_table, latex, markdown, print_whole
from runyard.reports.resampling import ResampledAP, resampled_ap
from runyard.reports.rows import Resampled, TableRow, baseline_of, gains_of, rows_of
from runyard.reports.sweep_plots import MOST_GAINS, AlphaPanel, plot_alpha, plot_gains
from runyard.runs.names import safe_name
from runyard.scoring.results import SweepResult, oracle_of
from runyard.tracking.outcome import Artifact

_MOST_PANELS = 4


@dataclass(frozen=True)
class Report:
    """Tables and plots worth keeping of a sweep."""

    artifacts: tuple[Artifact, ...] = ()
    summary: str = ""
    """The tables as Markdown."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Mean AP of each row by 'val/AP/<row>', a fraction."""
    results: int = 0
    """Number of evaluations that these are of."""


def report(sweep: SweepResult, console: Console, server: ServerResults | None = None) -> Report:
    """Print the tables of a sweep and write them, with plots, below `sweep.folder.results`.

    Works with whatever trials have metrics; without any it says so. The first time it resamples every evaluation, and
    keeps that beside it.
    """
    if server is not None and not any(paper.shown_beside for paper in sweep.paper):
        raise ConfigError("a server's results stand beside Table 1 only", field="server_results", value=sweep.name)
    rows = rows_of(sweep.results)
    if not rows:
        console.print(f"{sweep.name}: no trial has results yet", highlight=False, markup=False)
        return Report()
    rows += _oracle_rows(rows)
    resampled = _resample(rows, console)
    folder = sweep.folder.results
    written: list[Path] = []
    page = [f"# {sweep.name}\n"]
    for paper in sweep.paper or (None,):
        table = make_table(sweep, rows, paper, resampled, server if paper and paper.shown_beside else None)
        print_whole(comparison_table(table.rows, table.columns, table.title), console)
        for note in table.notes:
            console.print(f"  {note}", highlight=False, markup=False, soft_wrap=True, style="dim")
        stem = safe_name(paper.name.lower().replace(" ", "") if paper else "table")
        text = markdown(table.rows, table.columns, table.title) + "\n" + "".join(f"- {n}\n" for n in table.notes)
        page.append(text)
        tex = latex(table.rows, table.columns, table.title)
        for suffix, content in ((".md", text), (".csv", table.csv), (".tex", tex)):
            written.append(folder / f"{stem}{suffix}")
            write_text(written[-1], content)
    summary = "\n".join(page[1:])
    choices = choice_sentences(rows, resampled)
    for sentence in choices:
        console.print(f"  {sentence}", highlight=False, markup=False, soft_wrap=True)
    plots = _plots(sweep, rows, resampled, console)
    correlation = "Correlation of the confidence with the true IoU"
    page += [markdown(_correlations(rows), ("Pearson", "Spearman", "n"), correlation, unit="")]
    page += ["Best alpha:\n\n" + "".join(f"- {sentence}\n" for sentence in choices)] * bool(choices)
    page += [_class_table(rows)]
    page += ["\n".join(f"![{path.stem}]({path.name})" for path in plots) + "\n"] * bool(plots)
    written.append(folder / "report.md")
    write_text(written[-1], "\n".join(page))
    for path in (written[-1], *plots):
        console.print(f"  {path}", highlight=False, markup=False, soft_wrap=True)
    means = {f"val/AP/{row.label}": row.spread("val/AP").mean for row in rows}
    return Report(
        (*((path, "results") for path in written), *((path, "plots") for path in plots)),
        summary,
        {name: mean for name, mean in means.items() if mean is not None},
        sum(len(row.results) for row in rows),
    )


def read_server_results(path: Path) -> ServerResults:
    """A JSON file with COCO's server's answers in %: {"r50-iou": {"AP": 36.9, "AP50": 56.1}}; ConfigError otherwise."""
    try:
        answers = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be read ({error})", file=path) from error
    if not isinstance(answers, dict) or not all(isinstance(row, dict) for row in answers.values()):
        raise ConfigError("must be a mapping of rows to mappings of columns to numbers", file=path)
    return answers


def _oracle_rows(rows: Sequence[TableRow]) -> list[TableRow]:
    """One row for each group of rows that differ in alpha only, where the stores declare the oracle."""
    found = []
    groups = alpha_groups(rows, fewest=1)
    for group in groups:
        first = next(iter(group.values()))
        oracles = tuple(o for o in (oracle_of(r) for r in first.results) if o is not None)
        if oracles:
            name = oracles[0].row + (f" ({first.name})" if len(groups) > 1 else "")
            found.append(TableRow(name, oracles, first.planned))
    return found


def _resample(rows: Sequence[TableRow], console: Console) -> dict[str, ResampledAP]:
    """Resamples by the results' ids; about 14 s for 5,000 images and 500,000 detections, on one core.

    Prints how many are made, and what cannot be had any more.
    """
    results = [(row, result) for row in rows for result in row.results]
    new = sum(not result.evaluation.resampled.exists() for _, result in results)
    if new:
        console.print(f"  resampling the images of {new} evaluations for the intervals", highlight=False)
    resampled = {}
    for row, result in results:
        try:
            resampled[result.id] = resampled_ap(result)
        except InputError as error:
            _report_lost(console, row, "no interval", error)
    return resampled


def _report_lost(console: Console, row: TableRow, what: str, error: InputError) -> None:
    text = f"  {row.label}: {what}, its detections are gone: {error}"
    console.print(text, style="yellow", soft_wrap=True, highlight=False, markup=False)


def _plots(sweep: SweepResult, rows: Sequence[TableRow], resampled: Resampled, console: Console) -> list[Path]:
    folder = sweep.folder.results
    shown = _highlights(rows)
    label = _paper_label(sweep, rows)
    plots = []
    for number, group in enumerate(alpha_groups(rows)):
        path = folder / ("alpha.png" if number == 0 else f"alpha-{number + 1}.png")
        plots.append(_plot_alpha(sweep, rows, group, path, label))
    with_baseline = [(row, base) for row in rows if (base := baseline_of(row, rows)) is not None]
    gaining = [(row, base) for row, base in with_baseline if row.alpha is None and not row.oracle]
    gaining = gaining or [(row, base) for row, base in with_baseline if row in shown]
    if len(gaining) > MOST_GAINS:
        console.print(f"  gains.png shows the first {MOST_GAINS} of {len(gaining)} rows", style="dim", highlight=False)
    gains = {row.label: gains_of(row, base, COLUMNS, resampled) for row, base in gaining}
    if gains and all(gains.values()):
        printed = {} if sweep.smoke else {row.label: _paper_gains(sweep.paper, row, base) for row, base in gaining}
        plots.append(plot_gains(gains, folder / "gains.png", paper=printed, paper_label=label, title=sweep.name))
    curves = {row.label: row.results[0].metrics or {} for row in shown}
    plots.append(plot_ap_by_iou(curves, folder / "ap_by_iou.png", title=sweep.name))
    panels = [panel for row in shown if (panel := _confidence_panel(row, console)) is not None]
    if panels:
        plots.append(plot_confidence_panels(panels, folder / "confidence.png", title=sweep.name))
    return plots


def _paper_label(sweep: SweepResult, rows: Sequence[TableRow]) -> str:
    """What the plots call the paper's curve: on which images, and whether all its rows may be compared with ours."""
    if not sweep.paper:
        return ""
    paper = sweep.paper[-1]
    reproduced = [row for row in rows if row.spec.paper.row in paper.rows]
    comparable = all(why_not_comparable(sweep, row, paper) is None for row in reproduced)
    return f"paper, {paper.evaluated_on.name}{'' if comparable else ' (not comparable)'}"


def _plot_alpha(
    sweep: SweepResult, rows: Sequence[TableRow], group: Mapping[float, TableRow], path: Path, label: str
) -> Path:
    first = next(iter(group.values()))
    baseline = baseline_of(first, rows)
    oracle = next((o for o in rows if o.oracle and o.without_alpha == first.without_alpha), None)
    panels = []
    for metric in COLUMNS:
        name = f"val/{metric}"
        tables = [] if sweep.smoke else [table.rows for table in sweep.paper if table.protocol == "coco"]
        printed = {key: row.percent[metric] / 100 for t in tables for key, row in t.items() if metric in row.percent}
        values = {a: printed[row.spec.paper.row] for a, row in group.items() if row.spec.paper.row in printed}
        panels.append(
            AlphaPanel(
                metric,
                {alpha: row.spread(name) for alpha, row in group.items()},
                baseline.spread(name) if baseline else None,
                oracle.spread(name) if oracle else None,
                values,
                printed.get("baseline") if values else None,
            )
        )
    return plot_alpha(panels, path, paper_label=label, title=sweep.name)


def _confidence_panel(row: TableRow, console: Console) -> ConfidencePanel | None:
    """Of the first seed; None where its detections cannot be had any more."""
    try:
        dataset, table = row.results[0].load_detections()
    except InputError as error:
        _report_lost(console, row, "no heat map", error)
        return None
    true_iou = true_ious(dataset, table)
    correlation = confidence_correlation(table.scores, true_iou)
    return ConfidencePanel(f"confidence: {row.label}", table.scores, true_iou, correlation)


def _highlights(rows: Sequence[TableRow]) -> list[TableRow]:
    """The few rows that a plot has room for: baselines, the class score alone, the best; never the oracle."""
    rows = [row for row in rows if not row.oracle]
    if len(rows) <= _MOST_PANELS:
        return rows
    best = max(rows, key=lambda row: row.spread("val/AP").mean or 0.0)
    chosen = [row for row in rows if not row.spec.model.iou_head or row.alpha == 1.0 or row is best]
    chosen += [row for row in rows if row not in chosen]
    return [row for row in rows if row in chosen[:_MOST_PANELS]]


def _paper_gains(tables: Sequence[PaperTable], row: TableRow, baseline: TableRow) -> dict[str, float]:
    """Metric -> fraction that the paper's row has over its baseline."""
    gains: dict[str, float] = {}
    for table in tables:
        ours, theirs = (table.rows.get(side.spec.paper.row) for side in (row, baseline))
        if table.protocol == "coco" and ours and theirs:
            both = [column for column in COLUMNS if column in ours.percent and column in theirs.percent]
            gains |= {column: (ours.percent[column] - theirs.percent[column]) / 100 for column in both}
    return gains


def _correlations(rows: Sequence[TableRow]) -> list[TextRow]:
    def text(spread: Spread) -> str:
        return "n/a" if spread.mean is None else f"{spread.mean:.3f}" + (f" ± {spread.std:.3f}" if spread.std else "")

    def count(row: TableRow) -> str:
        values = [(result.metrics or {}).get("val/correlation_n_confidence") for result in row.results]
        return ", ".join("n/a" if value is None else f"{value:,.0f}" for value in dict.fromkeys(values))

    return [
        TextRow(
            row.label,
            {name: text(row.spread(f"val/{name.lower()}_confidence")) for name in ("Pearson", "Spearman")}
            | {"n": count(row)},
        )
        for row in rows
    ]


def _class_table(rows: Sequence[TableRow]) -> str:
    """AP of every class, as Markdown."""
    prefix = "val/class_AP/"
    names = dict.fromkeys(n for row in rows for r in row.results for n in r.metrics or {} if n.startswith(prefix))
    texts = [TextRow(name.removeprefix(prefix), {row.label: row.spread(name) for row in rows}) for name in names]
    return markdown(texts, [row.label for row in rows], "AP of each class")
