"""Counts of ground-truth boxes without area and of those not within their image. K boxes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.data.box_geometry import clip_corners, corners_from_xywh


@dataclass(frozen=True)
class BoxCounts:
    """Counts that do not overlap."""

    zero_size: int
    """Boxes of width or height 0."""
    outside: int
    """With area, but none of it within the image."""
    partly_outside: int

    def __bool__(self) -> bool:
        return bool(self.zero_size or self.outside or self.partly_outside)

    def __str__(self) -> str:
        return (
            f"{self.zero_size} boxes without area, {self.outside} outside their image, "
            f"{self.partly_outside} partly outside"
        )


def count_boxes(boxes_xywh: NDArray[np.float64], sizes: NDArray[np.int64]) -> BoxCounts:
    """Counts over (K, 4) x, y, width, height boxes, given each one's (K, 2) image height and width; K may be 0."""
    corners = corners_from_xywh(boxes_xywh)
    clipped = clip_corners(corners, sizes)
    has_area = (boxes_xywh[:, 2:] > 0).all(axis=1)
    touches = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    within = (clipped == corners).all(axis=1)
    return BoxCounts(
        zero_size=int((~has_area).sum()),
        outside=int((has_area & ~touches).sum()),
        partly_outside=int((has_area & touches & ~within).sum()),
    )
