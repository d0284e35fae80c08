"""Likely mistakes in ground truth and detections that can be scored but should not be believed.

Each check names the mistake that explains what it sees; none changes a result. All are silent on data that is as it
should be, odd objects included: they look at shares, not at single boxes. K boxes, D detections, P pairs.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from detector.data.box_geometry import Floats, corners_from_xywh
from detector.data.samples import Dataset
from detector.evaluation.overlaps import pair_ious, pairs_within_groups
from detector.evaluation.results import DetectionTable

_MOST_DETECTIONS = 20_000
"""The best-scored ones are enough to see whether classes match."""
_SHARE_BEYOND = 0.05
_FAR_BEYOND = 0.1
"""Share of the image's side: models overshoot by a few pixels, and annotators by one or two."""
_SHARE_AS_CORNERS = 0.98
_SHARE_CORNERS_BEYOND = 0.3
"""Three in four corners that are read as x, y, width, height leave their image, if objects lie anywhere."""
_SHARE_REPEATED = 0.1
_SMALLEST_IMAGE_PX = 8


def ground_truth_findings(dataset: Dataset) -> list[str]:
    """One sentence for each likely mistake in the annotations; empty for none."""
    sizes = dataset.image_sizes[dataset.image_of_row]
    findings = _box_findings("ground-truth boxes", dataset.boxes_xywh, sizes)
    keys = np.column_stack([dataset.image_of_row, dataset.labels, dataset.boxes_xywh])
    findings += _repeated("annotations", keys, "the same image, class and box")
    has_area = (dataset.boxes_xywh[:, 2:] > 0).all(axis=1)
    if has_area.any() and not dataset.areas[has_area].any():
        findings.append(
            f"all {has_area.sum():,} annotations have area 0: AP by size counts every object as small, and pycocotools "
            "does so too; write the area of the mask or of the box"
        )
    return findings


def detection_findings(dataset: Dataset, table: DetectionTable) -> list[str]:
    """One sentence for each likely mistake in the detections, or in how they fit the ground truth; empty for none."""
    sizes = dataset.image_sizes[table.image_index]
    findings = _score_findings(table.scores)
    findings += _box_findings("detected boxes", table.boxes_xywh, sizes)
    keys = np.column_stack([table.image_index, table.labels, table.boxes_xywh, table.scores])
    findings += _repeated("detections", keys, "the same image, class, box and score")
    return findings + _class_findings(dataset, table)


def _score_findings(scores: Floats) -> list[str]:
    outside = (scores < 0) | (scores > 1)
    if not outside.any():
        return []
    if scores.min() < 0:
        cause = "they look like logits (apply the sigmoid)"
    elif scores.max() <= 100:
        cause = "they look like percent (divide by 100)"
    else:
        cause = "they are not probabilities"
    return [
        f"{outside.sum():,} of {len(scores):,} scores lie outside 0 to 1, from {scores.min():g} to {scores.max():g}: "
        f"{cause}. AP goes by their order alone, the correlation with the true IoU does not"
    ]


def _box_findings(what: str, boxes_xywh: Floats, sizes: NDArray[np.int64]) -> list[str]:
    """The first that holds of: normalised to 1, corners in place of sizes, far beyond their images."""
    known = sizes.min(axis=1, initial=1 << 62) >= _SMALLEST_IMAGE_PX  # 0 where the file states no size
    boxes, sizes = boxes_xywh[known], sizes[known]
    if not len(boxes):
        return []
    corners = corners_from_xywh(boxes)
    if corners.max() <= 1 + 1e-6 and boxes[:, 2:].max() > 0:
        return [f"all {len(boxes):,} {what} lie within 0 to 1: they look normalised; pixels are expected"]
    height, width = sizes.T.astype(np.float64)
    beyond = (corners[:, 2] > width * (1 + _FAR_BEYOND)) | (corners[:, 3] > height * (1 + _FAR_BEYOND))
    as_corners = (boxes[:, 2] >= boxes[:, 0]) & (boxes[:, 3] >= boxes[:, 1])
    as_corners &= (boxes[:, 2] <= width + 1) & (boxes[:, 3] <= height + 1)
    if as_corners.mean() >= _SHARE_AS_CORNERS and beyond.mean() >= _SHARE_CORNERS_BEYOND:
        return [
            f"{what} look like corners x1, y1, x2, y2, where x, y, width, height is expected: {beyond.mean():.0%} of "
            f"{len(boxes):,} reach far beyond their image as they stand, and nearly all fit into it as corners"
        ]
    beyond |= (corners[:, 0] < -_FAR_BEYOND * width) | (corners[:, 1] < -_FAR_BEYOND * height)
    if beyond.mean() >= _SHARE_BEYOND:
        return [
            f"{beyond.mean():.0%} of {len(boxes):,} {what} reach far beyond their image: they may be of other images, "
            "of another image size, or in another form than x, y, width, height"
        ]
    return []


def _repeated(what: str, keys: Floats, same: str) -> list[str]:
    if not len(keys):
        return []
    order = np.lexsort(keys.T)
    repeated = int((np.diff(keys[order], axis=0) == 0).all(axis=1).sum())
    if repeated < _SHARE_REPEATED * len(keys):
        return []
    return [
        f"{repeated:,} of {len(keys):,} {what} repeat an earlier one with {same}: "
        "a file may have been written or merged twice"
    ]


def _class_findings(dataset: Dataset, table: DetectionTable) -> list[str]:
    """Detections that overlap objects well, but objects of other classes."""
    truth_ids, found_ids = _matched_ids(dataset, table)
    if not len(found_ids):
        return []
    same = (truth_ids == found_ids).mean()
    for shift in (-1, 1):
        share = (found_ids - truth_ids == shift).mean()
        if share >= 0.5 and same < 0.1:
            return [
                f"category ids look shifted by one: {share:.0%} of {len(found_ids):,} detections that overlap an "
                f"object have its category id {shift:+d}"
            ]
    if same == 0 and len(found_ids) >= 100:
        return [
            f"none of {len(found_ids):,} detections that overlap an object has its class: category ids may be those of "
            "another file"
        ]
    return []


def _matched_ids(dataset: Dataset, table: DetectionTable) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(P,) category ids of the objects and of the best-scored detections that have an IoU of at least 0.5 with them.

    A detection stands for itself once: with an object of its own class where it overlaps one, else with the first.
    """
    best = np.sort(np.argsort(-table.scores, kind="stable")[:_MOST_DETECTIONS])
    ids = np.array([category.id for category in dataset.categories], dtype=np.int64)
    pairs: list[Sequence[NDArray[np.int64]]] = []
    for rows, annotations in pairs_within_groups(table.image_index[best], dataset.image_of_row):
        ious = pair_ious(table.boxes_xywh[best[rows]], dataset.boxes_xywh[annotations], dataset.is_crowd[annotations])
        near = ious >= 0.5
        pairs.append((rows[near], dataset.labels[annotations[near]]))
    if not pairs:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    rows, truth = (np.concatenate(column) for column in zip(*pairs, strict=True))
    found = table.labels[best[rows]]
    order = np.lexsort((found != truth, rows))
    first = order[np.flatnonzero(np.diff(rows[order], prepend=-1))]
    return ids[truth[first]], ids[found[first]]
