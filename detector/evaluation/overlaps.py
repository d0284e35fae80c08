"""Overlaps of detections with the ground truth of their image, as flat lists of pairs.

D detections, K annotations, P pairs. An image has a few objects and up to a hundred detections, so that a dense matrix
per image would be many small arrays and a dense matrix over images mostly empty: pairs are made for whole columns at
once instead, in chunks of bounded size. float64 throughout, in the order of operations of pycocotools' C code, so that
a threshold is passed by the same pairs.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

_PAIRS_PER_CHUNK = 2**16  # the dozen columns of a chunk then stay in the cache of a core


def pairs_within_groups(detection_group: Indices, truth_group: Indices) -> Iterator[tuple[Indices, Indices]]:
    """All (detection, annotation) pairs of equal group, as two (P,) row-index columns per chunk.

    Pairs are ordered by detection row, then by annotation row. All pairs of one detection are in the same chunk;
    detections without annotations appear in none.
    """
    order = np.argsort(truth_group, kind="stable")
    sorted_groups = truth_group[order]
    first = np.searchsorted(sorted_groups, detection_group, side="left")
    counts = np.searchsorted(sorted_groups, detection_group, side="right") - first
    ends = np.cumsum(counts)
    begin = 0
    while begin < len(counts):
        done = ends[begin - 1] if begin else 0
        end = max(int(np.searchsorted(ends, done + _PAIRS_PER_CHUNK, side="right")), begin + 1)
        chunk_counts = counts[begin:end]
        detections = np.repeat(np.arange(begin, end, dtype=np.int64), chunk_counts)
        within = np.arange(len(detections)) - np.repeat(ends[begin:end] - chunk_counts - done, chunk_counts)
        if len(detections):
            yield detections, order[np.repeat(first[begin:end], chunk_counts) + within]
        begin = end


def pair_ious(detections_xywh: Floats, truth_xywh: Floats, is_crowd: NDArray[np.bool_]) -> Floats:
    """IoU of paired (P, 4) x, y, width, height boxes: (P,) in [0, 1]; against a crowd, intersection over the
    detection's area. Boxes that do not overlap, and empty ones, have 0."""
    # Corner by corner: NumPy's inner loop over two of four numbers takes twice as long.
    x, y, width, height = detections_xywh.T
    truth_x, truth_y, truth_width, truth_height = truth_xywh.T
    shared_width = np.maximum(np.minimum(x + width, truth_x + truth_width) - np.maximum(x, truth_x), 0.0)
    shared_height = np.maximum(np.minimum(y + height, truth_y + truth_height) - np.maximum(y, truth_y), 0.0)
    intersection = shared_width * shared_height
    area = width * height
    union = np.where(is_crowd, area, area + truth_width * truth_height - intersection)
    return _ratio(intersection, union)


def pair_ious_of_corners(a: Floats, b: Floats, offset: float) -> Floats:
    """IoU of paired (P, 4) x1, y1, x2, y2 boxes: (P,) in [0, 1].

    Args:
        offset: added to every side: 1 for the VOC devkit's inclusive corners, 0 for half-open boxes.
    """
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + offset
    intersection = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)
    areas = [(box[:, 2] - box[:, 0] + offset) * (box[:, 3] - box[:, 1] + offset) for box in (a, b)]
    return _ratio(intersection, areas[0] + areas[1] - intersection)


def _ratio(intersection: Floats, union: Floats) -> Floats:
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=intersection > 0)


def best_of_each_detection(detections: Indices, values: Floats) -> tuple[Indices, Indices]:
    """The pair with the largest value of each detection; among equal ones the first.

    `detections` (P,) must be ascending. Returns (n,) detection rows and (n,) positions in the pair columns.
    """
    starts = np.flatnonzero(np.diff(detections, prepend=-1))
    largest = np.repeat(np.maximum.reduceat(values, starts), np.diff(starts, append=len(values)))
    position = np.where(values == largest, np.arange(len(values)), len(values))
    return detections[starts], np.minimum.reduceat(position, starts)
