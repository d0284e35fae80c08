"""A paired bootstrap of the AP difference of two detectors: whether it exceeds the chance of which images were drawn.

N images, C classes, D detections, B resamples, T IoU thresholds. Both detectors are scored on the same N images drawn
with replacement, B times over. Matching happens within an image, so it is done once; a resample only weights every
detection and object by how often its image was drawn, and AP follows from weighted cumulative sums. That equals COCO's
AP of the data set with repeated images, the copies of an image next to each other, except for ties within an image and
class: of two detections A and B with equal scores, COCO ranks A and B of the first copy before A and B of the second,
while here all copies of A come before those of B.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.data.samples import Dataset
from detector.evaluation.coco_ap import IOU_THRESHOLDS, RECALL_THRESHOLDS
from detector.evaluation.coco_matches import CocoMatches, match_as_coco
from detector.evaluation.results import DetectionTable

_ELEMENTS_PER_CHUNK = 300_000  # a chunk's columns stay in cache: a quarter faster than with millions
METRICS = ("AP", *(f"AP{round(100 * threshold)}" for threshold in IOU_THRESHOLDS))
"""Metrics that have intervals."""


@dataclass(frozen=True)
class Interval:
    """AP of b minus AP of a, in fractions, and the 2.5th and 97.5th percentile of it over the resamples.

    None without ground truth; resamples that happen to hold none are left out.
    """

    difference: float | None
    low: float | None
    high: float | None


def resample(dataset: Dataset, table: DetectionTable, weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """(W, T) AP of the best 100 detections an image and class, with image i counted `weights[:, i]` times."""
    matches = match_as_coco(dataset, table)
    return weighted_average_precision(matches, len(dataset.categories), weights, range(len(IOU_THRESHOLDS)))


def metric_of(ap: NDArray[np.float64], metric: str) -> NDArray[np.float64]:
    """(W,) AP or AP50 ... AP95 of (W, T) values; ValueError for other metrics."""
    if metric not in METRICS:
        raise ValueError(f"metrics are {', '.join(METRICS)}, not {metric}")
    return ap.mean(axis=1) if metric == "AP" else ap[:, METRICS.index(metric) - 1]


def mean_difference(
    aps_a: Sequence[NDArray[np.float64]], aps_b: Sequence[NDArray[np.float64]], metric: str
) -> Interval:
    """The mean over detectors b (the seeds of one setting, say) minus that over a, with its 95% interval.

    Args:
        aps_a: at least one (1 + B, T), each the `resample` of one detector with the same `image_draws`.
    """
    means = [np.mean([metric_of(ap, metric) for ap in side], axis=0) for side in (aps_a, aps_b)]
    return _interval(means[1] - means[0])


def weighted_average_precision(
    matches: CocoMatches, num_classes: int, weights: NDArray[np.int64], thresholds: Sequence[int]
) -> NDArray[np.float64]:
    """(B, T) AP at `IOU_THRESHOLDS[thresholds]`, over the classes that have ground truth, with image i counted
    `weights[:, i]` times. `weights` is (B, N) whole numbers; ones give COCO's AP. NaN without any ground truth.
    """
    total = np.zeros((len(weights), len(thresholds)))
    classes = np.zeros((len(weights), 1))
    starts = np.searchsorted(matches.labels, np.arange(num_classes + 1))
    for label in range(num_classes):
        images = matches.truth_image_index[matches.truth_labels == label]
        rows = slice(int(starts[label]), int(starts[label + 1]))
        step = max(1, _ELEMENTS_PER_CHUNK // max(rows.stop - rows.start, len(images), 1))
        for begin in range(0, len(weights), step):
            chunk = slice(begin, begin + step)
            positives = weights[chunk][:, images].sum(axis=1)
            present = positives > 0
            total[chunk] += np.where(
                present[:, None], _class_ap(matches, rows, weights[chunk], positives, thresholds), 0
            )
            classes[chunk] += present[:, None]
    return np.divide(total, classes, out=np.full_like(total, np.nan), where=classes > 0)


def _class_ap(
    matches: CocoMatches,
    rows: slice,
    weights: NDArray[np.int64],
    positives: NDArray[np.int64],
    thresholds: Sequence[int],
) -> NDArray[np.float64]:
    """(B, T) 101-point AP of one class with `positives` (B,) objects; whatever where that is 0."""
    image_index = matches.image_index[rows]
    counted = np.cumsum(weights[:, image_index], axis=1)
    ap = np.zeros((len(weights), len(thresholds)))
    for column, index in enumerate(thresholds):
        # Only at true positives does recall rise or precision peak, so the curve is needed there alone.
        hits = np.flatnonzero(matches.true_positive[index, rows])
        if not len(hits):
            continue
        ignored = np.flatnonzero(matches.ignored[index, rows])
        ignored_before = np.cumsum(np.pad(weights[:, image_index[ignored]], ((0, 0), (1, 0))), axis=1)
        seen = counted[:, hits] - ignored_before[:, np.searchsorted(ignored, hits)]
        found = np.cumsum(weights[:, image_index[hits]], axis=1)
        precision = found / (seen + np.spacing(1))
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        envelope = np.pad(envelope, ((0, 0), (0, 1)))  # recalls that are never reached have precision 0
        recall = found / np.maximum(positives, 1)[:, None]
        for row in range(len(weights)):
            reached = np.searchsorted(recall[row], RECALL_THRESHOLDS, side="left")
            ap[row, column] = envelope[row, reached].mean()
    return ap


def image_draws(num_images: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """(1 + B, N) how often each image is drawn; the first row is every image once. Equal arguments give equal rows."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    generator = np.random.default_rng(seed)
    draws = (
        generator.integers(0, num_images, size=(resamples, num_images)) if num_images else np.zeros((resamples, 0), int)
    )
    rows = np.arange(resamples)[:, None] * num_images
    counts = np.bincount((draws + rows).ravel(), minlength=resamples * num_images).reshape(resamples, num_images)
    return np.concatenate([np.ones((1, num_images), dtype=np.int64), counts])


def _interval(differences: NDArray[np.float64]) -> Interval:
    """Interval of (1 + B,) differences, the first of which is that of all images."""
    if np.isnan(differences[0]):
        return Interval(None, None, None)
    low, high = np.percentile(differences[1:][~np.isnan(differences[1:])], [2.5, 97.5])
    return Interval(float(differences[0]), float(low), float(high))
