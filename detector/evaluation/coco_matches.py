"""COCO's assignment of detections to ground truth, as columns: what AP is made of, before any averaging.

T IoU thresholds, D detections, P pairs. The same greedy rule as pycocotools' evaluateImg for the area range 'all', but
for all images and classes at once: rank by rank, each group's next-best detection takes its best free object.
`bootstrap` needs this per detection, which no backend hands out in less than a dictionary per image and class.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from detector.data.samples import Dataset
from detector.evaluation.coco_ap import IOU_THRESHOLDS, image_ranks
from detector.evaluation.overlaps import pair_ious, pairs_within_groups
from detector.evaluation.results import DetectionTable

# A threshold of 1 must be passable by an IoU that rounding left just below it; pycocotools' own constant.
_THRESHOLDS = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)


@dataclass(frozen=True, eq=False)
class CocoMatches:
    """The detections that count towards AP, by label, then best score first, each with its outcome."""

    labels: NDArray[np.int64]
    """(D,)"""
    image_index: NDArray[np.int64]
    """(D,)"""
    true_positive: NDArray[np.bool_]
    """(T, D)"""
    ignored: NDArray[np.bool_]
    """(T, D) matched to a crowd; what is neither is a false positive."""
    truth_labels: NDArray[np.int64]
    """(G,) labels of the ground truth that counts."""
    truth_image_index: NDArray[np.int64]
    """(G,)"""


def match_as_coco(dataset: Dataset, table: DetectionTable, *, max_detections: int = 100) -> CocoMatches:
    """Matches the best `max_detections` rows of each image and class; the rest are left out."""
    num_classes = len(dataset.categories)
    groups = table.image_index * num_classes + table.labels
    order = np.lexsort((-table.scores, groups))
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    order, rank = order[rank < max_detections], rank[rank < max_detections]
    crowd = dataset.is_crowd | dataset.is_difficult
    outcome = _match_ranks(rank, *_ranked_pairs(table.boxes_xywh[order], groups[order], dataset, crowd), crowd)
    # Ties over images rank by image id, as in `coco_average_precision`; within an image they are in order already.
    image_index = table.image_index[order]
    by_class = np.lexsort((rank, image_ranks(dataset)[image_index], -table.scores[order], table.labels[order]))
    return CocoMatches(
        labels=table.labels[order][by_class],
        image_index=image_index[by_class],
        true_positive=(outcome == 1)[:, by_class],
        ignored=(outcome == -1)[:, by_class],
        truth_labels=dataset.labels[~crowd],
        truth_image_index=dataset.image_of_row[~crowd],
    )


def _ranked_pairs(
    boxes_xywh: NDArray[np.float64], groups: NDArray[np.int64], dataset: Dataset, crowd: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """(P,) detection rows, annotation rows and IoUs of all pairs that may match, by detection, most wanted first.

    A detection wants regular objects before crowds, then the largest IoU, then the later annotation.
    """
    truth_groups = dataset.image_of_row * len(dataset.categories) + dataset.labels
    chunks = []
    for rows, annotations in pairs_within_groups(groups, truth_groups):
        ious = pair_ious(boxes_xywh[rows], dataset.boxes_xywh[annotations], crowd[annotations])
        near = ious >= _THRESHOLDS[0]
        chunks.append((rows[near], annotations[near], ious[near]))
    if not chunks:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0)
    rows, annotations, ious = (np.concatenate(column) for column in zip(*chunks, strict=True))
    wanted = np.lexsort((-annotations, -ious, crowd[annotations], rows))
    return rows[wanted], annotations[wanted], ious[wanted]


def _match_ranks(
    rank: NDArray[np.int64],
    rows: NDArray[np.int64],
    annotations: NDArray[np.int64],
    ious: NDArray[np.float64],
    crowd: NDArray[np.bool_],
) -> NDArray[np.int8]:
    """(T, D) outcome: 1 true positive, 0 false positive, -1 ignored. Pairs as `_ranked_pairs` orders them."""
    outcome = np.zeros((len(_THRESHOLDS), len(rank)), dtype=np.int8)
    taken = np.zeros((len(_THRESHOLDS), len(crowd)), dtype=bool)
    by_rank = np.argsort(rank[rows], kind="stable")
    bounds = np.searchsorted(rank[rows][by_rank], np.arange(rank.max(initial=-1) + 2))
    reaches = ious >= _THRESHOLDS[:, None]
    for begin, end in pairwise(bounds.tolist()):
        if begin == end:
            continue
        pairs = by_rank[begin:end]  # at most one detection of each image and class: they compete for nothing
        free = reaches[:, pairs] & ~taken[:, annotations[pairs]]
        starts = np.flatnonzero(np.diff(rows[pairs], prepend=-1))
        first = np.minimum.reduceat(np.where(free, np.arange(len(pairs)), len(pairs)), starts, axis=1)
        threshold, detection = np.nonzero(first < len(pairs))
        chosen = pairs[first[threshold, detection]]
        is_crowd = crowd[annotations[chosen]]
        outcome[threshold, rows[chosen]] = np.where(is_crowd, -1, 1)
        taken[threshold, annotations[chosen]] = ~is_crowd  # any number of detections may match a crowd
    return outcome
