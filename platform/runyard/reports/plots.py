"""Plots of one run or two, written as PNG: confidence against IoU, training curves, AP over IoU thresholds.

D detections. matplotlib is imported on use; every function returns the path it has written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.data.samples import Dataset
from detector.evaluation.correlation import Correlation, confidence_correlation, true_ious
from detector.evaluation.results import DetectionTable
from runyard.reports.style import PALETTE, TEXT_COLOUR, new_figure, plot_style, save_figure

_BINS = 40
_FEWEST_FOR_A_MEDIAN = 5
_SMOOTHED_FROM_POINTS = 40
_CONFIDENCES = {"class_scores": "class score", "ious": "predicted IoU", "scores": "combined confidence"}
_LOSSES = {
    "train/loss": "total", "train/loss_cls": "classification", "train/loss_box": "box", "train/loss_iou": "IoU",
}  # fmt: skip
_PRECISIONS = {"val/AP": "AP", "val/AP50": "AP50", "val/AP75": "AP75", "val/AP90": "AP90"}
_THRESHOLDS = tuple(range(50, 100, 5))


@dataclass(frozen=True, eq=False)
class ConfidencePanel:
    """One confidence of D detections against their true IoU."""

    title: str
    confidence: NDArray[np.float64]
    """(D,) in [0, 1]; NaN where unknown."""
    true_iou: NDArray[np.float64]
    """(D,) in [0, 1]."""
    correlation: Correlation


def plot_correlation(dataset: Dataset, table: DetectionTable, path: Path, *, title: str = "") -> Path:
    """Heat maps of class score, predicted IoU and combined confidence against the true IoU of final detections.

    A run without an IoU head has one panel: its class score is its confidence.
    """
    true_iou = true_ious(dataset, table)
    columns = {name: np.asarray(getattr(table, name), dtype=np.float64) for name in _CONFIDENCES}
    if not np.isfinite(columns["ious"]).any():
        columns = {"scores": columns["scores"]}
    panels = [
        ConfidencePanel(_CONFIDENCES[name], values, true_iou, confidence_correlation(values, true_iou))
        for name, values in columns.items()
    ]
    return plot_confidence_panels(panels, path, title=title)


def plot_confidence_panels(panels: Sequence[ConfidencePanel], path: Path, *, title: str = "") -> Path:
    """2D histograms side by side, with one colour scale for all, the median IoU at each confidence, and the diagonal.

    Correlations and n stand in the titles; a panel without detections says so. One panel at least.
    """
    from matplotlib.colors import LogNorm

    edges = np.linspace(0.0, 1.0, _BINS + 1)
    histograms = [
        np.histogram2d(panel.confidence[known], panel.true_iou[known], bins=(edges, edges))[0]
        for panel in panels
        for known in [np.isfinite(panel.confidence) & np.isfinite(panel.true_iou)]
    ]
    norm = LogNorm(vmin=1, vmax=max(10.0, *(float(histogram.max()) for histogram in histograms)))
    with plot_style():
        figure = new_figure(1.4 + 3.6 * len(panels), 4.7 + (0.3 if title else 0.0))
        figure.set_layout_engine("compressed")  # square panels side by side, and no gaps around them
        axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        image = None
        for axis, panel, histogram in zip(axes, panels, histograms, strict=True):
            # A cell nobody fell into stays white: 'one' and 'none' must not look alike.
            cells = np.ma.masked_equal(histogram.T, 0)
            image = axis.pcolormesh(edges, edges, cells, norm=norm, cmap="viridis_r", rasterized=True)
            axis.plot([0, 1], [0, 1], color="#444444", linestyle=(0, (4, 3)), linewidth=1.2, label="confidence = IoU")
            _draw_medians(axis, panel)
            if histogram.sum() == 0:
                axis.text(0.5, 0.5, "no detections", ha="center", va="center", backgroundcolor="white")
            axis.set(xlim=(0, 1), ylim=(0, 1), xlabel=panel.title, aspect="equal")
            axis.set_title(_correlation_text(panel.correlation), fontweight="normal")
        axes[0].set_ylabel("true IoU with the best ground truth")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        bar = figure.colorbar(image, ax=list(axes), pad=0.015, format="{x:,.0f}")
        bar.ax.grid(visible=False)
        bar.set_label("detections in a cell")
        bar.outline.set_visible(False)
        if title:
            figure.suptitle(title, fontweight="bold", fontsize=12)
        return save_figure(figure, path)


def plot_training_curves(curves: Mapping[str, Sequence[tuple[int, float]]], path: Path, *, title: str = "") -> Path:
    """Losses, learning rate and AP by optimiser step, from `journal.effective_metrics`; absent metrics are left out."""
    groups: list[tuple[str, dict[str, Sequence[tuple[int, float]]]]] = [
        ("loss", {label: curves[name] for name, label in _LOSSES.items() if curves.get(name)}),
        ("learning rate", {"": curves["train/learning_rate"]} if curves.get("train/learning_rate") else {}),
        ("average precision, %", {
            label: [(step, 100 * value) for step, value in curves[name]]
            for name, label in _PRECISIONS.items()
            if curves.get(name)
        }),
    ]  # fmt: skip
    groups = [(label, lines) for label, lines in groups if lines] or [("nothing was logged", {})]
    with plot_style():
        figure = new_figure(4.4 * len(groups), 3.6 + (0.3 if title else 0.0))
        axes = figure.subplots(1, len(groups), sharex=True, squeeze=False)[0]
        for axis, (label, lines) in zip(axes, groups, strict=True):
            for colour, (name, points) in zip(PALETTE, lines.items(), strict=False):
                _draw_curve(axis, np.asarray(points, dtype=np.float64), colour, name)
            axis.set_title(label)
            axis.set_xlabel("optimiser step")
            axis.set_ylim(0, 1.08 * max((_top(points) for points in lines.values()), default=0.0) or 1.0)
            axis.locator_params(axis="x", nbins=6)
            if any(lines):
                axis.legend(loc="best")
            if label == "learning rate":
                axis.yaxis.set_major_formatter("{x:.3g}")
        if title:
            figure.suptitle(title, fontweight="bold", fontsize=12)
        return save_figure(figure, path)


def plot_ap_by_iou(runs: Mapping[str, Mapping[str, float]], path: Path, *, title: str = "") -> Path:
    """AP at IoU 0.50 to 0.95 of up to seven runs, and below it each one's difference to the first, in points.

    Args:
        runs: by label, the metrics of a run: 'val/AP50' ... 'val/AP95' as fractions; a missing one leaves a gap.
    """
    values = {
        label: 100 * np.array([metrics.get(f"val/AP{threshold}", np.nan) for threshold in _THRESHOLDS])
        for label, metrics in runs.items()
    }
    labels = list(values)
    places = np.arange(len(_THRESHOLDS))
    with plot_style():
        figure = new_figure(7.0, (5.2 if len(labels) > 1 else 3.8) + (0.3 if title else 0.0))
        if len(labels) > 1:
            top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.6))
        else:
            top, bottom = figure.subplots(), None
        for colour, marker, label in zip(PALETTE, "osD^vPX", labels, strict=False):
            top.plot(places, values[label], color=colour, marker=marker, markersize=5, label=label)
        top.set_ylabel("AP, %")
        top.set_ylim(bottom=0)
        top.legend(loc="upper right")
        if bottom is not None:
            width = 0.7 / (len(labels) - 1)
            for number, label in enumerate(labels[1:]):
                offsets = places + width * (number - (len(labels) - 2) / 2)
                difference = values[label] - values[labels[0]]
                bars = bottom.bar(offsets, np.nan_to_num(difference), width * 0.92, color=PALETTE[number + 1])
                if len(labels) == 2:
                    texts = [f"{value:+.1f}" if np.isfinite(value) else "n/a" for value in difference]
                    bottom.bar_label(bars, texts, fontsize=8.5, padding=2, color=TEXT_COLOUR)
            bottom.axhline(0, color="#4D4D4D", linewidth=1.0)
            bottom.set_ylabel(f"points over\n{labels[0]}")
            bottom.margins(y=0.25)
            bottom.grid(axis="x", visible=False)
        lowest = bottom or top
        lowest.set_xticks(places, [f"{threshold / 100:.2f}" for threshold in _THRESHOLDS])
        lowest.set_xlabel("IoU threshold")
        if title:
            figure.suptitle(title, fontweight="bold", fontsize=12)
        return save_figure(figure, path)


def _correlation_text(correlation: Correlation) -> str:
    pearson, spearman = (
        "n/a" if value is None else f"{value:.3f}" for value in (correlation.pearson, correlation.spearman)
    )
    return f"Pearson {pearson} · Spearman {spearman}\nn = {correlation.n:,}"


def _draw_medians(axis: Any, panel: ConfidencePanel) -> None:
    """The median true IoU in each tenth of the confidence; where it leaves the diagonal, the confidence misleads."""
    edges = np.linspace(0.0, 1.0, 11)
    tenth = np.clip(np.digitize(panel.confidence, edges) - 1, 0, 9)
    centres, medians = [], []
    for number in range(10):
        members = panel.true_iou[(tenth == number) & np.isfinite(panel.confidence)]
        if len(members) >= _FEWEST_FOR_A_MEDIAN:
            centres.append((edges[number] + edges[number + 1]) / 2)
            medians.append(float(np.median(members)))
    axis.plot(centres, medians, color="white", linewidth=4.0, solid_capstyle="round")
    axis.plot(centres, medians, color=PALETTE[1], linewidth=2.0, marker="o", markersize=4, label="median IoU")


def _draw_curve(axis: Any, points: NDArray[np.float64], colour: str, label: str) -> None:
    """A curve; a long one faintly, with its running mean over a twentieth of its points on top."""
    steps, values = points[:, 0], points[:, 1]
    if len(points) < _SMOOTHED_FROM_POINTS or not label or not np.isfinite(values).all():
        axis.plot(steps, values, color=colour, label=label, marker="o" if len(points) < 16 else None, markersize=4)
        return
    half_window = max(1, len(points) // 40)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    places = np.arange(len(values))
    starts, ends = np.maximum(places - half_window, 0), np.minimum(places + half_window + 1, len(values))
    axis.plot(steps, values, color=colour, alpha=0.25, linewidth=1.0)
    axis.plot(steps, (sums[ends] - sums[starts]) / (ends - starts), color=colour, label=label)


def _top(points: Sequence[tuple[int, float]]) -> float:
    return max((value for _, value in points if np.isfinite(value)), default=0.0)
