"""PASCAL VOC's average precision: the devkit's matching, at any IoU threshold, by 11 points or by area.

T IoU thresholds, C classes, D detections. Each detection is assigned to the ground truth of its class and image that
it overlaps most, whether or not that one is taken (COCO would look for the next best). It is a true positive if their
IoU reaches the threshold (>=, as the MATLAB devkit has it) and no better-scored detection took that object; ignored if
that object is difficult; a false positive otherwise. Rows of equal score rank as they stand in the table.

Corners and the devkit's "+1". The devkit reads inclusive corners and takes x2 - x1 + 1 for a width: `offset` is that 1.
Corners are taken as the file had them: x + width - 1 for data sets whose `box_convention` is 'inclusive', so that
offset 1 is the devkit to the digit; x + width for half-open ones, which offset 1 widens by a pixel, as other tools do
that read COCO boxes under VOC rules, and which offset 0 takes as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from detector.data.box_geometry import corners_from_xywh
from detector.data.samples import Dataset
from detector.evaluation.overlaps import best_of_each_detection, pair_ious_of_corners, pairs_within_groups
from detector.evaluation.results import DetectionTable

Points = Literal["11", "area"]

# 0.3, 0.6 and 0.7 come out one digit high here, so that a recall of exactly 3/10 does not reach them: the devkit's
# own quirk, kept because published numbers have it.
_ELEVEN_RECALLS = np.arange(0.0, 1.1, 0.1)


@dataclass(frozen=True, eq=False)
class VocMetrics:
    """VOC AP as fractions from 0 to 1; NaN for a class without ground truth that counts, which no mean includes."""

    iou_thresholds: tuple[float, ...]
    class_ap: NDArray[np.float64]
    """(T, C)"""

    @property
    def mean_ap(self) -> tuple[float | None, ...]:
        """mAP at each of the T thresholds; None without any ground truth."""
        available = self.class_ap[:, ~np.isnan(self.class_ap).any(axis=0)]
        return tuple(float(row.mean()) if row.size else None for row in available)

    @property
    def ap(self) -> float | None:
        """mAP averaged over the thresholds: Table 5's AP, for 0.50:0.05:0.95 and 11 points."""
        means = [value for value in self.mean_ap if value is not None]
        return sum(means) / len(means) if means else None


@dataclass(frozen=True, eq=False)
class VocCurve:
    """Precision and recall after each detection of one class, best score first; recall is NaN without ground truth."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]

    def average_precision(self, points: Points) -> float:
        """Mean of 11 interpolated precisions ('11', VOC 2007) or area under the envelope ('area', VOC 2010 on)."""
        if np.isnan(self.recall).any():
            return float("nan")
        envelope = np.maximum.accumulate(np.append(self.precision, 0.0)[::-1])[::-1]
        if points == "11":
            return float(envelope[np.searchsorted(self.recall, _ELEVEN_RECALLS, side="left")].sum() / 11)
        steps = np.diff(self.recall, prepend=0.0)
        return float((steps * envelope[:-1]).sum())


def voc_average_precision(
    dataset: Dataset, table: DetectionTable, *, iou: float | Sequence[float] = 0.5, points: Points, offset: float = 1.0
) -> VocMetrics:
    """VOC AP of every class at one or more IoU thresholds. Without detections it is 0 where there is ground truth.

    Crowds, which VOC does not have, are ignored like difficult objects.
    """
    thresholds = (float(iou),) if isinstance(iou, int | float) else tuple(float(value) for value in iou)
    ranked = VocMatches.match(dataset, table, offset)
    class_ap = np.full((len(thresholds), len(dataset.categories)), np.nan)
    for label in range(len(dataset.categories)):
        if ranked.countable[label]:
            for index, threshold in enumerate(thresholds):
                class_ap[index, label] = ranked.curve(label, threshold).average_precision(points)
    return VocMetrics(thresholds, class_ap)


@dataclass(frozen=True, eq=False)
class VocMatches:
    """Detections by label, then score, each with its assigned ground truth."""

    class_starts: NDArray[np.int64]
    """(C + 1,) first row of each label."""
    best_iou: NDArray[np.float64]
    """(D,) -inf where the image has no object of the class."""
    truth: NDArray[np.int64]
    """(D,) annotation row, -1 without one."""
    ignored_truth: NDArray[np.bool_]
    """(D,) the annotation is difficult or a crowd."""
    countable: NDArray[np.int64]
    """(C,) objects that count."""

    @classmethod
    def match(cls, dataset: Dataset, table: DetectionTable, offset: float = 1.0) -> "VocMatches":
        """Assign each detection the object of its class and image that it overlaps most."""
        num_classes = len(dataset.categories)
        order = np.lexsort((-table.scores, table.labels))  # lexsort is stable
        labels = table.labels[order]
        ignored = dataset.is_difficult | dataset.is_crowd
        corners = _corners(table.boxes_xywh[order], dataset)
        truth_corners = _corners(dataset.boxes_xywh, dataset)
        best_iou = np.full(len(table), -np.inf)
        truth = np.full(len(table), -1, dtype=np.int64)
        groups = table.image_index[order] * num_classes + labels
        truth_groups = dataset.image_of_row * num_classes + dataset.labels
        for rows, annotations in pairs_within_groups(groups, truth_groups):
            ious = pair_ious_of_corners(corners[rows], truth_corners[annotations], offset)
            found, best = best_of_each_detection(rows, ious)
            best_iou[found] = ious[best]
            truth[found] = annotations[best]
        return cls(
            class_starts=np.searchsorted(labels, np.arange(num_classes + 1)),
            best_iou=best_iou,
            truth=truth,
            ignored_truth=(truth >= 0) & ignored[truth] if len(ignored) else np.zeros(len(table), dtype=bool),
            countable=np.bincount(dataset.labels[~ignored], minlength=num_classes),
        )

    def curve(self, label: int, threshold: float) -> VocCurve:
        """Curve of one class at an IoU threshold, before interpolation."""
        rows = slice(int(self.class_starts[label]), int(self.class_starts[label + 1]))
        reaches = self.best_iou[rows] >= threshold
        ignored = reaches & self.ignored_truth[rows]
        candidates = np.flatnonzero(reaches & ~ignored)
        true_positive = np.zeros(len(reaches), dtype=bool)
        # The first, and so best-scored, detection of each object.
        true_positive[candidates[np.unique(self.truth[rows][candidates], return_index=True)[1]]] = True
        positives = np.cumsum(true_positive, dtype=np.float64)
        counted = np.cumsum(~ignored, dtype=np.float64)
        precision = np.divide(positives, counted, out=np.zeros_like(positives), where=counted > 0)
        countable = float(self.countable[label])
        return VocCurve(precision, positives / countable if countable else np.full_like(positives, np.nan))


def _corners(boxes_xywh: NDArray[np.float64], dataset: Dataset) -> NDArray[np.float64]:
    """x1, y1, x2, y2 under the convention of the data set's files."""
    inclusive = 1.0 if dataset.box_convention == "inclusive" else 0.0
    return corners_from_xywh(boxes_xywh) - np.array([0.0, 0.0, inclusive, inclusive])
