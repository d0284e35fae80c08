"""Plots of a sweep, written as PNG: AP against alpha with the paper's curve, and what each row gains on the baseline.

Every function returns the path it has written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detector.evaluation.bootstrap import Interval
from runyard.reports.render import Spread
from runyard.reports.style import PALETTE, TEXT_COLOUR, new_figure, plot_style, save_figure

_PAPER_COLOUR = "#8C8C8C"

MOST_GAINS = len(PALETTE)
"""Rows of `plot_gains`: one for each colour."""


@dataclass(frozen=True)
class AlphaPanel:
    """One metric against alpha; fractions."""

    metric: str
    ours: Mapping[float, Spread]
    """By alpha."""
    baseline: Spread | None
    oracle: Spread | None
    paper: Mapping[float, float]
    """By alpha; empty where the paper has none."""
    paper_baseline: float | None


def plot_alpha(panels: Sequence[AlphaPanel], path: Path, *, paper_label: str, title: str = "") -> Path:
    """AP against alpha, a panel a metric: our mean with its deviation over seeds, the baseline, and the paper's curve.

    Args:
        panels: one at least.
        paper_label: what the legend calls the paper's curve: on which images, and whether it is comparable.
    """
    with plot_style():
        figure = new_figure(3.5 * len(panels) + 0.3, 3.9 + (0.3 if title else 0.0))
        axes = figure.subplots(1, len(panels), sharex=True, squeeze=False)[0]
        for axis, panel in zip(axes, panels, strict=True):
            if panel.paper:
                _curve(axis, panel.paper, _PAPER_COLOUR, paper_label, linestyle=(0, (4, 3)), marker="D", markersize=3.5)
            if panel.paper_baseline is not None:
                reference = 100 * panel.paper_baseline
                axis.axhline(reference, color=_PAPER_COLOUR, linewidth=1.0, linestyle=(0, (1, 2)), label="its baseline")
            means = {alpha: spread.mean for alpha, spread in panel.ours.items() if spread.mean is not None}
            _curve(axis, means, PALETTE[0], "ours", marker="o", markersize=4.5)
            _deviations(axis, panel.ours)
            for level, colour, style, label in (
                (panel.baseline, PALETTE[1], "--", "our baseline"), (panel.oracle, PALETTE[2], ":", "ours, oracle IoU"),
            ):  # fmt: skip
                if level is not None and level.mean is not None:
                    axis.axhline(100 * level.mean, color=colour, linestyle=style, linewidth=1.5, label=label)
            axis.set_title(panel.metric)
            axis.set_xlabel("alpha")
            axis.set_xlim(1.03, -0.03)  # as in the paper's tables: from the class score alone to the IoU alone
            axis.set_ylim(*_limits(panel))
        axes[0].set_ylabel("%")
        figure.legend(*_legend(axes), loc="outside lower center", ncols=4)
        if title:
            figure.suptitle(title, fontweight="bold", fontsize=12)
        return save_figure(figure, path)


def plot_gains(
    gains: Mapping[str, Mapping[str, Interval]],
    path: Path,
    *,
    paper: Mapping[str, Mapping[str, float]],
    paper_label: str,
    title: str = "",
) -> Path:
    """Points over the baseline, a group of bars a metric, with 95% intervals over images and the paper's as diamonds.

    Args:
        gains: by row, by metric, each row with the same metrics; the first `MOST_GAINS` are shown, and the title says
            so where there are more.
        paper: the same as fractions, where the paper has it.
    """
    if len(gains) > MOST_GAINS:
        title = f"{title} (the first {MOST_GAINS} of {len(gains)} rows)".strip()
        gains = dict(list(gains.items())[:MOST_GAINS])
    metrics = list(next(iter(gains.values()), {}))
    places = np.arange(len(metrics))
    width = 0.8 / max(len(gains), 1)
    with plot_style():
        figure = new_figure(max(6.4, 1.7 * len(metrics) + 0.4 * len(gains)), 4.2 + (0.3 if title else 0.0))
        axis = figure.subplots()
        for number, (colour, (row, by_metric)) in enumerate(zip(PALETTE, gains.items(), strict=False)):
            offsets = places + width * (number - (len(gains) - 1) / 2)
            points = _percent([by_metric[metric].difference for metric in metrics])
            low, high = (_percent([getattr(by_metric[m], end) for m in metrics]) for end in ("low", "high"))
            axis.bar(offsets, np.nan_to_num(points), width * 0.92, color=colour, label=row)
            axis.errorbar(
                offsets, points, yerr=np.nan_to_num([points - low, high - points]).clip(min=0), fmt="none",
                ecolor=TEXT_COLOUR, elinewidth=1.2, capsize=3,
            )  # fmt: skip
            printed = _percent([paper.get(row, {}).get(metric) for metric in metrics])
            label = paper_label if np.isfinite(printed).any() else ""
            axis.plot(
                offsets, printed, "D", color="white", markeredgecolor=_PAPER_COLOUR, markeredgewidth=1.6, markersize=7,
                label=label or None,
            )  # fmt: skip
        axis.axhline(0, color="#4D4D4D", linewidth=1.0)
        axis.set_xticks(places, metrics)
        axis.set_ylabel("points over the baseline")
        axis.grid(axis="x", visible=False)
        axis.margins(y=0.12)
        figure.legend(*_legend([axis]), loc="outside lower center", ncols=4)
        if title:
            figure.suptitle(title, fontweight="bold", fontsize=12)
        return save_figure(figure, path)


def _curve(axis: Any, points: Mapping[float, float], colour: str, label: str, **look: Any) -> None:
    ordered = sorted(points)
    axis.plot(ordered, [100 * points[alpha] for alpha in ordered], color=colour, label=label, **look)


def _deviations(axis: Any, ours: Mapping[float, Spread]) -> None:
    known = {a: s for a, s in ours.items() if s.mean is not None and s.std is not None}
    if known:
        ordered = sorted(known)
        low, high = ([100 * (known[a].mean + sign * known[a].std) for a in ordered] for sign in (-1, 1))  # type: ignore[operator]
        axis.fill_between(ordered, low, high, color=PALETTE[0], alpha=0.2, linewidth=0)


def _limits(panel: AlphaPanel) -> tuple[float, float]:
    """Where the interesting alphas differ: near alpha 0 AP falls to nothing, which would flatten all else."""
    shown = [s.mean for alpha, s in panel.ours.items() if alpha >= 0.2 and s.mean is not None]
    shown += [value for alpha, value in panel.paper.items() if alpha >= 0.2]
    levels = (panel.baseline, panel.oracle)
    shown += [s.mean for s in levels if s is not None and s.mean is not None]
    shown += [panel.paper_baseline] if panel.paper_baseline is not None else []
    shown = shown or [s.mean for s in panel.ours.values() if s.mean is not None] or [0.0, 1.0]
    low, high = 100 * min(shown), 100 * max(shown)
    margin = max(0.12 * (high - low), 0.5)
    return low - margin, high + margin


def _legend(axes: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """Every label once."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


def _percent(values: Sequence[float | None]) -> Any:
    return np.array([np.nan if value is None else 100 * value for value in values], dtype=np.float64)
