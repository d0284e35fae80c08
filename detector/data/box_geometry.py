"""Geometry of ground-truth boxes as NumPy columns: the two box forms, clipping, and which boxes training uses.

K boxes. x, y, width, height and x1, y1, x2, y2 are half-open (width = x2 - x1), in the original image's pixels.
Image sizes are (height, width), as everywhere.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SMALLEST_TRAINABLE_SIDE_PX = 1.0
"""MMDetection drops thinner boxes: they are annotation slips that no anchor can match."""


def corners_from_xywh(boxes_xywh: Floats) -> Floats:
    """(K, 4) x1, y1, x2, y2 of (K, 4) x, y, width, height; K may be 0."""
    return np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)


def xywh_from_corners(corners: Floats) -> Floats:
    """(K, 4) x, y, width, height of (K, 4) x1, y1, x2, y2; K may be 0."""
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def clip_corners(corners: Floats, sizes: NDArray[np.int64]) -> Floats:
    """(K, 4) corners moved into their image.

    Args:
        sizes: (K, 2) height and width of each box's image, or (2,) of the image of all.
    """
    height, width = sizes[..., 0], sizes[..., 1]
    x1, y1, x2, y2 = corners.T
    return np.stack([x1.clip(0, width), y1.clip(0, height), x2.clip(0, width), y2.clip(0, height)], axis=1)


def has_trainable_sides(clipped: Floats) -> NDArray[np.bool_]:
    """(K,) boxes that are at least `SMALLEST_TRAINABLE_SIDE_PX` wide and high, given clipped corners (K, 4)."""
    x1, y1, x2, y2 = clipped.T
    return (x2 - x1 >= SMALLEST_TRAINABLE_SIDE_PX) & (y2 - y1 >= SMALLEST_TRAINABLE_SIDE_PX)
