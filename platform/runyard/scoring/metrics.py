"""From a table of detections to the metrics of a run, with the names under which they are tracked everywhere."""

from typing import Any

import numpy as np

from detector.data.samples import Dataset
from detector.evaluation.coco_ap import IOU_THRESHOLDS, coco_average_precision
from detector.evaluation.correlation import confidence_correlation, true_ious
from detector.evaluation.results import DetectionTable, write_coco_results
from detector.evaluation.voc_ap import voc_average_precision
from detector.files import write_json
from runyard.runs.folder import EvaluationFolder

CONFIDENCES = {"class_score": "class_scores", "predicted_iou": "ious", "confidence": "scores"}
"""What is correlated with the true IoU: metric name, column of the table."""


def score_detections(
    dataset: Dataset, table: DetectionTable, protocol: str, max_detections: int = 100
) -> dict[str, float]:
    """Every metric of an evaluation as 'val/<name>', fractions from 0 to 1; what is not available is left out.

    COCO's AP and AR, AP of every class, the correlation of confidence and true IoU; for protocol 'voc' VOC's 11-point
    and area AP at 0.50:0.05:0.95 as well.
    """
    coco = coco_average_precision(dataset, table, max_detections=max_detections)
    metrics: dict[str, float | None] = {f"val/{name}": value for name, value in coco.summary.items()}
    for category, value in zip(dataset.class_names, coco.per_class["AP"], strict=True):
        metrics[f"val/class_AP/{category}"] = float(value)
    if protocol == "voc":
        metrics |= _voc_metrics(dataset, table)
    metrics |= _correlations(dataset, table)
    metrics["val/images"] = float(len(dataset))
    metrics["val/skipped_images"] = float(len(dataset.skipped))
    metrics["val/detections"] = float(len(table))
    return {name: float(value) for name, value in metrics.items() if value is not None and np.isfinite(value)}


def write_evaluation(
    folder: EvaluationFolder, dataset: Dataset, table: DetectionTable, metrics: dict[str, Any]
) -> None:
    """Writes the result file (original ids, with the two factors of each score) and, last, the metrics."""
    write_coco_results(table, dataset, folder.detections, factors=True)
    write_json(folder.metrics, metrics, indent=2)


def _voc_metrics(dataset: Dataset, table: DetectionTable) -> dict[str, float | None]:
    metrics: dict[str, float | None] = {}
    for name, points in (("VOC07", "11"), ("VOC12", "area")):
        result = voc_average_precision(dataset, table, iou=IOU_THRESHOLDS.tolist(), points=points)  # type: ignore[arg-type]
        for iou, value in zip(IOU_THRESHOLDS, result.mean_ap, strict=True):
            metrics[f"val/{name}_AP{round(100 * float(iou))}"] = value
        metrics[f"val/{name}_AP"] = result.ap
    return metrics


def _correlations(dataset: Dataset, table: DetectionTable) -> dict[str, float | None]:
    true_iou = true_ious(dataset, table)
    metrics: dict[str, float | None] = {}
    for name, column in CONFIDENCES.items():
        correlation = confidence_correlation(getattr(table, column), true_iou)
        metrics[f"val/pearson_{name}"] = correlation.pearson
        metrics[f"val/spearman_{name}"] = correlation.spearman
        metrics[f"val/correlation_n_{name}"] = float(correlation.n)
    return metrics
