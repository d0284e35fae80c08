"""The metrics of an evaluation, in one list, under the names that are tracked everywhere.

Training, re-scoring and `runyard evaluate` read `EVALUATORS`. A new metric is a function and a line in that list.
C classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from detector.data.samples import Dataset
from detector.evaluation.coco_ap import IOU_THRESHOLDS, Backend, coco_average_precision
from detector.evaluation.correlation import confidence_correlation, true_ious
from detector.evaluation.results import DetectionTable
from detector.evaluation.voc_ap import Points, voc_average_precision

PREFIX = "val/"
CONFIDENCES = {"class_score": "class_scores", "predicted_iou": "ious", "confidence": "scores"}
"""Confidences that are correlated with the true IoU: metric name -> column of the table."""


@dataclass(frozen=True)
class Settings:
    """Conventions of the metrics; the defaults are those of every run."""

    backend: Backend = "hotcoco"
    max_detections: int = 100
    """COCO's limit for one image and class."""
    voc_offset: float = 1.0
    """Added to widths and heights by VOC's AP, see `voc_ap`."""


@dataclass(frozen=True)
class Scores:
    """Result of an evaluator: fractions from 0 to 1 and counts; None or NaN without ground truth."""

    values: Mapping[str, float | None]
    """Tracked name without the prefix -> value."""
    per_class: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """(C,) columns in label order, for tables."""
    tracked_per_class: Mapping[str, str] = field(default_factory=dict)
    """Columns of `per_class` that are tracked too: name -> prefix of the metric ('class_AP' gives 'class_AP/fish')."""


@dataclass(frozen=True)
class Evaluator:
    """One entry of `EVALUATORS`."""

    name: str
    compute: Callable[[Dataset, DetectionTable, Settings], Scores]
    protocols: tuple[str, ...] = ("coco", "voc")
    """Protocols of a run under which it is computed."""


def coco(dataset: Dataset, table: DetectionTable, settings: Settings) -> Scores:
    """COCO's AP and AR, and AP of every class."""
    result = coco_average_precision(dataset, table, backend=settings.backend, max_detections=settings.max_detections)
    return Scores(result.summary, result.per_class, {"AP": "class_AP"})


def voc07(dataset: Dataset, table: DetectionTable, settings: Settings) -> Scores:
    """VOC's 11-point AP at IoU 0.50:0.05:0.95."""
    return _voc("VOC07", "11", dataset, table, settings)


def voc12(dataset: Dataset, table: DetectionTable, settings: Settings) -> Scores:
    """VOC's area under the curve at IoU 0.50:0.05:0.95."""
    return _voc("VOC12", "area", dataset, table, settings)


def correlation(dataset: Dataset, table: DetectionTable, settings: Settings) -> Scores:
    """Correlation of each confidence with the true IoU, and the number of detections that it comes from."""
    true_iou = true_ious(dataset, table)
    values: dict[str, float | None] = {}
    for name, column in CONFIDENCES.items():
        result = confidence_correlation(getattr(table, column), true_iou)
        values[f"pearson_{name}"] = result.pearson
        values[f"spearman_{name}"] = result.spearman
        values[f"correlation_n_{name}"] = float(result.n)
    return Scores(values)


def counts(dataset: Dataset, table: DetectionTable, settings: Settings) -> Scores:
    """Numbers of images, skipped images and detections."""
    return Scores(
        {
            "images": float(len(dataset)),
            "skipped_images": float(len(dataset.skipped)),
            "detections": float(len(table)),
        }
    )


EVALUATORS: tuple[Evaluator, ...] = (
    Evaluator("coco", coco),
    Evaluator("voc07", voc07, protocols=("voc",)),
    Evaluator("voc12", voc12, protocols=("voc",)),
    Evaluator("correlation", correlation),
    Evaluator("counts", counts),
)


def score_detections(
    dataset: Dataset, table: DetectionTable, protocol: str, max_detections: int = 100
) -> dict[str, float]:
    """Every metric of a run's evaluation by its tracked name ('val/AP'); unavailable ones are left out.

    Args:
        protocol: 'coco' or 'voc', which adds VOC's metrics.
    """
    settings = Settings(max_detections=max_detections)
    metrics: dict[str, float | None] = {}
    for evaluator in EVALUATORS:
        if protocol in evaluator.protocols:
            scores = evaluator.compute(dataset, table, settings)
            metrics |= scores.values
            for column, prefix in scores.tracked_per_class.items():
                names = (f"{prefix}/{name}" for name in dataset.class_names)
                metrics |= dict(zip(names, scores.per_class[column].tolist(), strict=True))
    return {
        f"{PREFIX}{name}": float(value) for name, value in metrics.items() if value is not None and np.isfinite(value)
    }


def _voc(name: str, points: Points, dataset: Dataset, table: DetectionTable, settings: Settings) -> Scores:
    result = voc_average_precision(
        dataset, table, iou=IOU_THRESHOLDS.tolist(), points=points, offset=settings.voc_offset
    )
    columns = [f"AP{round(100 * float(iou))}" for iou in IOU_THRESHOLDS]
    values = {f"{name}_AP": result.ap}
    values |= {f"{name}_{column}": value for column, value in zip(columns, result.mean_ap, strict=True)}
    by_class = {"AP": result.class_ap.mean(axis=0)}
    by_class |= {column: result.class_ap[columns.index(column)] for column in ("AP50", "AP75")}
    return Scores(values, by_class)
