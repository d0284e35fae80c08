"""What a sweep ends with, and `runyard table` makes again: tables beside the paper's, plots, and one page of all."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from detector.errors import ConfigError, InputError
from detector.evaluation.correlation import confidence_correlation, true_ious
from detector.files import write_text
from runyard.paper import PaperTable
from runyard.reports.comparison import COLUMNS, ServerResults, make_table, why_not_comparable
from runyard.reports.lines import Line, Resampled, baseline_of, gains_of, lines_of
from runyard.reports.plots import ConfidencePanel, plot_ap_by_iou, plot_confidence_panels
from runyard.reports.render import Row, Spread, comparison_table, latex, markdown, print_whole
from runyard.reports.resampling import ResampledAP, best_alpha_on_halves, resampled_ap
from runyard.reports.sweep_plots import AlphaPanel, plot_alpha, plot_gains
from runyard.runs.attempt import Artifact
from runyard.runs.folder import safe_name
from runyard.scoring.results import SweepResult, TrialResult, oracle_of

_FEWEST_ALPHAS = 3
_MOST_PANELS = 4
_MOST_BARS = 7


@dataclass(frozen=True)
class Report:
    """What is worth keeping of a sweep."""

    artifacts: tuple[Artifact, ...] = ()
    summary: str = ""
    """The tables as Markdown."""


def report(sweep: SweepResult, console: Console, server: ServerResults | None = None) -> Report:
    """Prints the tables of a sweep and writes them, with plots, below `sweep.folder.results`.

    Works with whatever trials have metrics; without any it says so. The first time it resamples every evaluation, and
    keeps that beside it.
    """
    if server is not None and not any(paper.shown_beside for paper in sweep.paper):
        raise ConfigError("a server's results stand beside Table 1 only", field="server_results", value=sweep.name)
    lines = lines_of(sweep.results)
    if not lines:
        console.print(f"{sweep.name}: no trial has results yet", highlight=False)
        return Report()
    lines += _oracle_lines(lines)
    resampled = _resample(lines, console)
    folder = sweep.folder.results
    written: list[Path] = []
    page = [f"# {sweep.name}\n"]
    for paper in sweep.paper or (None,):
        table = make_table(sweep, lines, paper, resampled, server if paper and paper.shown_beside else None)
        print_whole(comparison_table(table.rows, table.columns, table.title), console)
        for note in table.notes:
            console.print(f"  {note}", highlight=False, markup=False, soft_wrap=True, style="dim")
        stem = safe_name(paper.name.lower().replace(" ", "") if paper else "table")
        text = markdown(table.rows, table.columns, table.title) + "\n" + "".join(f"- {n}\n" for n in table.notes)
        page.append(text)
        for suffix, content in (
            (".md", text), (".csv", table.csv), (".tex", latex(table.rows, table.columns, table.title)),
        ):  # fmt: skip
            written.append(folder / f"{stem}{suffix}")
            write_text(written[-1], content)
    summary = "\n".join(page[1:])
    halves = _halves(lines, resampled)
    for sentence in halves:
        console.print(f"  {sentence}", highlight=False, soft_wrap=True)
    plots = _plots(sweep, lines, resampled, console)
    correlation = "Correlation of the confidence with the true IoU"
    page += [markdown(_correlations(lines), ("Pearson", "Spearman"), correlation, unit="")]
    page += ["Best alpha:\n\n" + "".join(f"- {sentence}\n" for sentence in halves)] * bool(halves)
    page += [_class_table(lines)]
    page += ["\n".join(f"![{path.stem}]({path.name})" for path in plots) + "\n"] * bool(plots)
    written.append(folder / "report.md")
    write_text(written[-1], "\n".join(page))
    for path in (written[-1], *plots):
        console.print(f"  {path}", highlight=False, soft_wrap=True)
    return Report((*((path, "results") for path in written), *((path, "plots") for path in plots)), summary)


def read_server_results(path: Path) -> ServerResults:
    """A JSON file with COCO's server's answers in %: {"r50-iou": {"AP": 36.9, "AP50": 56.1}}; ConfigError otherwise."""
    try:
        answers = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be read ({error})", file=path) from error
    if not isinstance(answers, dict) or not all(isinstance(row, dict) for row in answers.values()):
        raise ConfigError("must be a mapping of rows to mappings of columns to numbers", file=path)
    return answers


def _oracle_lines(lines: Sequence[Line]) -> list[Line]:
    """One for each group of lines that differ in alpha alone, where the stores declare the oracle."""
    found = []
    groups = _alpha_groups(lines, fewest=1)
    for group in groups:
        first = next(iter(group.values()))
        oracles = tuple(o for o in (oracle_of(r) for r in first.results) if o is not None)
        if oracles:
            name = oracles[0].line + (f" ({first.name})" if len(groups) > 1 else "")
            found.append(Line(name, oracles, first.planned))
    return found


def _resample(lines: Sequence[Line], console: Console) -> dict[str, ResampledAP]:
    """By the results' ids. Says what takes a while: about 14 s an evaluation of 5,000 images and 500,000 detections, on
    one core; and what cannot be had any more."""
    results = [result for line in lines for result in line.results]
    new = sum(not result.evaluation.resampled.exists() for result in results)
    if new:
        console.print(f"  resampling the images of {new} evaluations for the intervals", highlight=False)
    resampled = {}
    for result in results:
        try:
            resampled[result.id] = resampled_ap(result)
        except InputError as error:
            _tell_lost(console, result, "no interval", error)
    return resampled


def _tell_lost(console: Console, result: TrialResult, what: str, error: InputError) -> None:
    console.print(f"  {result.label}: {what}, its detections are gone: {error}", style="yellow", soft_wrap=True,
                  highlight=False, markup=False)  # fmt: skip


def _halves(lines: Sequence[Line], resampled: Resampled) -> list[str]:
    """What choosing alpha on one half of the images gives on the other."""
    sentences = []
    groups = _alpha_groups(lines)
    for group in groups:
        whole = {
            alpha: [resampled[result.id] for result in line.results]
            for alpha, line in group.items()
            if all(result.id in resampled for result in line.results)
        }
        which = f" of {next(iter(group.values())).row}" if len(groups) > 1 else ""
        sentences += [
            f"Best alpha{which} on one half of the images ({choice.images[0]:,}): {choice.alpha:g}, with COCO AP "
            f"{100 * choice.chosen_ap:.1f} there and {100 * choice.reported_ap:.1f} on the other half, where the best "
            f"of any alpha is {100 * choice.best_ap:.1f}."
            for choice in best_alpha_on_halves(whole)
        ]
    return sentences


def _alpha_groups(lines: Sequence[Line], fewest: int = _FEWEST_ALPHAS) -> list[dict[float, Line]]:
    """The lines that differ in alpha alone, by alpha; groups of too few values are left out."""
    groups: dict[str, dict[float, Line]] = {}
    for line in lines:
        if line.alpha is not None:
            groups.setdefault(line.without_alpha, {})[line.alpha] = line
    return [group for group in groups.values() if len(group) >= fewest]


def _plots(sweep: SweepResult, lines: Sequence[Line], resampled: Resampled, console: Console) -> list[Path]:
    folder = sweep.folder.results
    shown = _highlights(lines)
    label = _paper_label(sweep, lines)
    plots = []
    for number, group in enumerate(_alpha_groups(lines)):
        path = folder / ("alpha.png" if number == 0 else f"alpha-{number + 1}.png")
        plots.append(_plot_alpha(sweep, lines, group, path, label))
    with_baseline = [(line, base) for line in lines if (base := baseline_of(line, lines)) is not None]
    gaining = [(line, base) for line, base in with_baseline if line.alpha is None and not line.results[0].oracle]
    gaining = (gaining or [(line, base) for line, base in with_baseline if line in shown])[:_MOST_BARS]
    gains = {line.label: gains_of(line, base, COLUMNS, resampled) for line, base in gaining}
    if gains and all(gains.values()):
        printed = {} if sweep.smoke else {line.label: _paper_gains(sweep.paper, line, base) for line, base in gaining}
        plots.append(plot_gains(gains, folder / "gains.png", paper=printed, paper_label=label, title=sweep.name))
    curves = {line.label: line.results[0].metrics or {} for line in shown}
    plots.append(plot_ap_by_iou(curves, folder / "ap_by_iou.png", title=sweep.name))
    panels = [panel for line in shown if (panel := _confidence_panel(line, console)) is not None]
    if panels:
        plots.append(plot_confidence_panels(panels, folder / "confidence.png", title=sweep.name))
    return plots


def _paper_label(sweep: SweepResult, lines: Sequence[Line]) -> str:
    """What the plots call the paper's curve: on which images, and whether all its rows may be compared with ours."""
    if not sweep.paper:
        return ""
    paper = sweep.paper[-1]
    reproduced = [line for line in lines if line.spec.paper.row in paper.rows]
    comparable = all(why_not_comparable(sweep, line, paper) is None for line in reproduced)
    return f"paper, {paper.evaluated_on.name}{'' if comparable else ' (not comparable)'}"


def _plot_alpha(sweep: SweepResult, lines: Sequence[Line], group: Mapping[float, Line], path: Path, label: str) -> Path:
    first = next(iter(group.values()))
    baseline = baseline_of(first, lines)
    oracle = next((o for o in lines if o.results[0].oracle and o.without_alpha == first.without_alpha), None)
    panels = []
    for metric in COLUMNS:
        name = f"val/{metric}"
        tables = [] if sweep.smoke else [table.rows for table in sweep.paper if table.protocol == "coco"]
        printed = {key: row.percent[metric] / 100 for t in tables for key, row in t.items() if metric in row.percent}
        values = {a: printed[line.spec.paper.row] for a, line in group.items() if line.spec.paper.row in printed}
        panels.append(
            AlphaPanel(
                metric,
                {alpha: line.spread(name) for alpha, line in group.items()},
                baseline.spread(name) if baseline else None,
                oracle.spread(name) if oracle else None,
                values,
                printed.get("baseline") if values else None,
            )
        )
    return plot_alpha(panels, path, paper_label=label, title=sweep.name)


def _confidence_panel(line: Line, console: Console) -> ConfidencePanel | None:
    """Of the first seed; None where its detections cannot be had any more."""
    try:
        dataset, table = line.results[0].load_detections()
    except InputError as error:
        _tell_lost(console, line.results[0], "no heat map", error)
        return None
    true_iou = true_ious(dataset, table)
    correlation = confidence_correlation(table.scores, true_iou)
    return ConfidencePanel(f"confidence: {line.label}", table.scores, true_iou, correlation)


def _highlights(lines: Sequence[Line]) -> list[Line]:
    """The few lines that a plot has room for: baselines, the class score alone, the best; never the oracle."""
    lines = [line for line in lines if not line.results[0].oracle]
    if len(lines) <= _MOST_PANELS:
        return lines
    best = max(lines, key=lambda line: line.spread("val/AP").mean or 0.0)
    chosen = [line for line in lines if not line.spec.model.iou_head or line.alpha == 1.0 or line is best]
    chosen += [line for line in lines if line not in chosen]
    return [line for line in lines if line in chosen[:_MOST_PANELS]]


def _paper_gains(tables: Sequence[PaperTable], line: Line, baseline: Line) -> dict[str, float]:
    """Metric -> fraction that the paper's row has over its baseline."""
    gains: dict[str, float] = {}
    for table in tables:
        ours, theirs = (table.rows.get(side.spec.paper.row) for side in (line, baseline))
        if table.protocol == "coco" and ours and theirs:
            both = [column for column in COLUMNS if column in ours.percent and column in theirs.percent]
            gains |= {column: (ours.percent[column] - theirs.percent[column]) / 100 for column in both}
    return gains


def _correlations(lines: Sequence[Line]) -> list[Row]:
    def text(spread: Spread) -> str:
        return "n/a" if spread.mean is None else f"{spread.mean:.3f}" + (f" ± {spread.std:.3f}" if spread.std else "")

    return [
        Row(line.label, {name: text(line.spread(f"val/{name.lower()}_confidence")) for name in ("Pearson", "Spearman")})
        for line in lines
    ]


def _class_table(lines: Sequence[Line]) -> str:
    """AP of every class."""
    prefix = "val/class_AP/"
    names = dict.fromkeys(n for line in lines for r in line.results for n in r.metrics or {} if n.startswith(prefix))
    rows = [Row(name.removeprefix(prefix), {line.label: line.spread(name) for line in lines}) for name in names]
    return markdown(rows, [line.label for line in lines], "AP of each class")  # a line's label is its own
