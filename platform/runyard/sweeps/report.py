"""What a sweep ends with, and `runyard table` makes again: tables beside the paper's, plots, and one page of all."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from detector.errors import ConfigError
from detector.evaluation.correlation import confidence_correlation, true_ious
from runyard.attempt import Artifact
from runyard.layout import atomic_write_text, safe_name
from runyard.reports.paper import PaperTable
from runyard.reports.plots import ConfidencePanel, plot_ap_by_iou, plot_confidence_panels
from runyard.reports.sweep_plots import AlphaPanel, plot_alpha, plot_gains
from runyard.reports.tables import Row, Spread, comparison_table, latex, markdown, print_whole
from runyard.sweeps.resampling import best_alpha_on_halves, resampled_ap
from runyard.sweeps.results import SweepResult, oracle_of
from runyard.sweeps.tables import (
    COLUMNS,
    Line,
    ServerResults,
    baseline_of,
    gains_of,
    lines_of,
    make_table,
    why_not_comparable,
)

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
    lines = lines_of(sweep.results)
    if not lines:
        console.print(f"{sweep.name}: no trial has results yet", highlight=False)
        return Report()
    lines += _oracle_lines(lines)
    _resample(lines, console)
    folder = sweep.folder.results
    written: list[Path] = []
    page = [f"# {sweep.name}\n"]
    for paper in sweep.paper or (None,):
        table = make_table(sweep, lines, paper, resampled_ap, server if paper and paper.number == 1 else None)
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
            atomic_write_text(written[-1], content)
    summary = "\n".join(page[1:])
    halves = _halves(lines)
    for sentence in halves:
        console.print(f"  {sentence}", highlight=False, soft_wrap=True)
    plots = _plots(sweep, lines)
    correlation = "Correlation of the confidence with the true IoU"
    page += [markdown(_correlations(lines), ("Pearson", "Spearman"), correlation, unit="")]
    page += ["Best alpha:\n\n" + "".join(f"- {sentence}\n" for sentence in halves)] * bool(halves)
    page += [_class_table(lines)]
    page += ["\n".join(f"![{path.stem}]({path.name})" for path in plots) + "\n"] * bool(plots)
    written.append(folder / "report.md")
    atomic_write_text(written[-1], "\n".join(page))
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
    """One for each line of trainings that was ranked by several alphas, where the stores declare the oracle."""
    found: dict[str, Line] = {}
    for line in lines:
        oracles = [oracle_of(r) for r in line.results] if line.alpha is not None else []
        present = tuple(o for o in oracles if o is not None)
        if present and line.spec.training_hash not in found:
            found[line.spec.training_hash] = Line(present[0].line, present, len(line.results))
    return list(found.values())


def _resample(lines: Sequence[Line], console: Console) -> None:
    """Says what takes a while: about 14 s an evaluation of 5,000 images and 500,000 detections, on one core."""
    new = [r for line in lines for r in line.results if not r.evaluation.resampled.exists()]
    if not new:
        return
    console.print(f"  resampling the images of {len(new)} evaluations for the intervals", highlight=False)
    for result in new:
        resampled_ap(result)


def _halves(lines: Sequence[Line]) -> list[str]:
    """What choosing alpha on one half of the images gives on the other."""
    by_alpha = _by_alpha(lines)
    if len(by_alpha) < _FEWEST_ALPHAS:
        return []
    return [
        f"Best alpha on one half of the images ({choice.images[0]:,}): {choice.alpha:g}, with AP "
        f"{100 * choice.chosen_ap:.1f} there and {100 * choice.reported_ap:.1f} on the other half, where the best of "
        f"any alpha is {100 * choice.best_ap:.1f}."
        for choice in best_alpha_on_halves({a: [resampled_ap(r) for r in line.results] for a, line in by_alpha.items()})
    ]


def _by_alpha(lines: Sequence[Line]) -> dict[float, Line]:
    """The lines of the first training that was ranked by alphas."""
    ranked = [line for line in lines if line.alpha is not None]
    return {line.alpha: line for line in ranked if line.spec.training_hash == ranked[0].spec.training_hash}  # type: ignore[misc]


def _plots(sweep: SweepResult, lines: Sequence[Line]) -> list[Path]:
    folder = sweep.folder.results
    paper = sweep.paper[-1] if sweep.paper else None
    shown = _highlights(lines)
    comparable = paper is not None and any(why_not_comparable(sweep, line, paper) is None for line in lines)
    label = f"paper, {paper.evaluated_on.name}{'' if comparable else ' (not comparable)'}" if paper else ""
    plots = []
    if len(_by_alpha(lines)) >= _FEWEST_ALPHAS:
        plots.append(_plot_alpha(sweep, lines, label))
    with_baseline = [(line, baseline) for line in lines if (baseline := baseline_of(line, lines)) is not None]
    gaining = [(line, base) for line, base in with_baseline if line.alpha is None and not line.results[0].oracle]
    gaining = (gaining or [(line, base) for line, base in with_baseline if line in shown])[:_MOST_BARS]
    if gaining:
        gains = {line.label: gains_of(line, base, COLUMNS, resampled_ap) for line, base in gaining}
        printed = {} if sweep.smoke else {line.label: _paper_gains(sweep.paper, line, base) for line, base in gaining}
        plots.append(plot_gains(gains, folder / "gains.png", paper=printed, paper_label=label, title=sweep.name))
    plots.append(
        plot_ap_by_iou(
            {line.label: line.results[0].metrics or {} for line in shown}, folder / "ap_by_iou.png", title=sweep.name
        )
    )
    plots.append(_plot_confidences(shown, folder / "confidence.png", sweep.name))
    return plots


def _plot_alpha(sweep: SweepResult, lines: Sequence[Line], label: str) -> Path:
    by_alpha = _by_alpha(lines)
    first = next(iter(by_alpha.values()))
    baseline = baseline_of(first, lines)
    oracle = next((o for o in lines if o.results[0].oracle), None)
    panels = []
    for metric in COLUMNS:
        name = f"val/{metric}"
        tables = [] if sweep.smoke else [table for table in sweep.paper if table.protocol == "coco"]
        printed = {
            key: row.percent[metric] / 100 for t in tables for key, row in t.rows.items() if metric in row.percent
        }
        values = {a: printed[line.spec.paper.row] for a, line in by_alpha.items() if line.spec.paper.row in printed}
        panels.append(
            AlphaPanel(
                metric,
                {alpha: line.spread(name) for alpha, line in by_alpha.items()},
                baseline.spread(name) if baseline else None,
                oracle.spread(name) if oracle else None,
                values,
                printed.get("baseline") if values else None,
            )
        )
    return plot_alpha(panels, sweep.folder.results / "alpha.png", paper_label=label, title=sweep.name)


def _plot_confidences(shown: Sequence[Line], path: Path, title: str) -> Path:
    """Of the first seed of each line."""
    panels = []
    for line in shown:
        dataset, table = line.results[0].load_detections()
        true_iou = true_ious(dataset, table)
        correlation = confidence_correlation(table.scores, true_iou)
        panels.append(ConfidencePanel(f"confidence: {line.label}", table.scores, true_iou, correlation))
    return plot_confidence_panels(panels, path, title=title)


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
    return markdown(rows, [line.label for line in lines], "AP of each class")
