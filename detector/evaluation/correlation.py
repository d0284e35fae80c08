"""Correlation of a confidence with the localisation: the paper's central claim as two coefficients.

D detections.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.data.samples import Dataset
from detector.evaluation.overlaps import best_of_each_detection, pair_ious, pairs_within_groups
from detector.evaluation.results import DetectionTable


@dataclass(frozen=True)
class Correlation:
    """Correlation of `n` pairs, each in [-1, 1]; None for fewer than two pairs or where either side is constant."""

    pearson: float | None
    spearman: float | None
    n: int


def true_ious(dataset: Dataset, table: DetectionTable) -> NDArray[np.float64]:
    """(D,) IoU of each detection with the best ground truth of its image, of any class; 0 without ground truth.

    Crowds do not count, difficult objects do: they are single objects with a box.
    """
    best = np.zeros(len(table))
    single = np.flatnonzero(~dataset.is_crowd)
    boxes = dataset.boxes_xywh[single]
    image = dataset.image_of_row[single]
    for rows, annotations in pairs_within_groups(table.image_index, image):
        crowd = np.zeros(len(rows), dtype=bool)
        ious = pair_ious(table.boxes_xywh[rows], boxes[annotations], crowd)
        found, position = best_of_each_detection(rows, ious)
        best[found] = ious[position]
    return best


def confidence_correlation(values: NDArray[np.float64], true_iou: NDArray[np.float64]) -> Correlation:
    """Pearson's and Spearman's correlation of two (D,) columns; rows where either is NaN are left out and not counted.

    Equal values share the mean of their ranks.
    """
    known = np.isfinite(values) & np.isfinite(true_iou)
    x, y = values[known].astype(np.float64), true_iou[known].astype(np.float64)
    return Correlation(_pearson(x, y), _pearson(_average_ranks(x), _average_ranks(y)), len(x))


def _pearson(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    # By value, not by standard deviation: rounding gives a constant column a tiny one.
    if len(x) < 2 or x.min() == x.max() or y.min() == y.max():
        return None
    # Scaled first, so that squares of very small differences do not vanish.
    x, y = x - x.mean(), y - y.mean()
    x, y = x / np.abs(x).max(), y / np.abs(y).max()
    return float(np.clip((x @ y) / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def _average_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2.0)[inverse]
