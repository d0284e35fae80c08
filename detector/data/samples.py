"""The one form in which every data set reaches the rest of the code, whatever its files looked like.

N images, K annotations, C classes. Annotations are columns, not objects, so that 860,000 of them cost megabytes and
travel to workers cheaply. Ground truth is kept as the file gave it (float64 x, y, width, height, in the original
image's pixels, crowds and difficult objects included); what training drops or clips is decided in `training_boxes`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detector.data.box_geometry import clip_corners, corners_from_xywh, has_trainable_sides

LARGEST_COORDINATE_PX = 1e9
"""Limit of a ground-truth box's coordinates and sides: larger ones are slips, and areas must stay finite."""


@dataclass(frozen=True)
class Category:
    """A class: its label is its position in `Dataset.categories`, `id` is the annotation file's own number."""

    id: int
    name: str


@dataclass(frozen=True)
class UnusableImage:
    """An image that cannot be read, or is of another size than its annotations say."""

    path: Path
    reason: str


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and ground truth of one split.

    Annotations of image i are rows `offsets[i]:offsets[i + 1]` of the columns.
    """

    name: str
    """Title: 'coco2017/val2017'."""
    categories: tuple[Category, ...]
    image_paths: tuple[Path, ...]
    """N absolute paths."""
    image_ids: tuple[int | str, ...]
    """N ids as result files must name them (COCO: integers; VOC: the file's stem)."""
    image_sizes: NDArray[np.int64]
    """(N, 2) height, width in pixels after the EXIF decision."""
    offsets: NDArray[np.int64]
    """(N + 1,)"""
    boxes_xywh: NDArray[np.float64]
    """(K, 4) as given, unclipped; VOC's inclusive corners are already turned into half-open x, y, w, h."""
    labels: NDArray[np.int64]
    """(K,) 0 to C - 1."""
    areas: NDArray[np.float64]
    """(K,) COCO's `area` (of the mask, where there is one), else w * h."""
    is_crowd: NDArray[np.bool_]
    is_difficult: NDArray[np.bool_]
    box_convention: str = "half_open"
    """'half_open' (COCO: width = x2 - x1) or 'inclusive' (VOC files: width = x2 - x1 + 1); `boxes_xywh` is half-open
    in both cases, this only tells the VOC protocol which corners the files had."""
    skipped: tuple[UnusableImage, ...] = ()
    """Images of the split that are left out as they cannot be used: they are not among the N."""

    def __len__(self) -> int:
        return len(self.image_paths)

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names in label order."""
        return tuple(category.name for category in self.categories)

    def rows(self, image: int) -> slice:
        """The annotation rows of an image."""
        return slice(int(self.offsets[image]), int(self.offsets[image + 1]))

    @property
    def image_of_row(self) -> NDArray[np.int64]:
        """(K,) position of the image of every annotation row."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.offsets))

    @property
    def is_trainable(self) -> NDArray[np.bool_]:
        """(K,) the annotations that `training_boxes` returns."""
        clipped = clip_corners(corners_from_xywh(self.boxes_xywh), self.image_sizes[self.image_of_row])
        return has_trainable_sides(clipped) & ~(self.is_crowd | self.is_difficult)

    def training_boxes(self, image: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Boxes and labels to train on: crowds and difficult objects out, clipped to the image, empty ones out.

        Returns (G, 4) float32 x1, y1, x2, y2 in original pixels and (G,) labels; G may be 0.
        """
        rows = self.rows(image)
        usable = ~(self.is_crowd[rows] | self.is_difficult[rows])
        corners = clip_corners(corners_from_xywh(self.boxes_xywh[rows]), self.image_sizes[image])
        usable &= has_trainable_sides(corners)
        return corners[usable].astype(np.float32), self.labels[rows][usable]

    def subset(self, images: "NDArray[np.int64] | list[int] | range") -> "Dataset":
        """The same data set with these images only, in this order."""
        indices = np.asarray(images, dtype=np.int64)
        counts = (self.offsets[1:] - self.offsets[:-1])[indices]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = np.concatenate(
            [np.arange(self.offsets[i], self.offsets[i + 1]) for i in indices] or [np.zeros(0, dtype=np.int64)]
        ).astype(np.int64)
        return Dataset(
            name=self.name,
            categories=self.categories,
            image_paths=tuple(self.image_paths[i] for i in indices),
            image_ids=tuple(self.image_ids[i] for i in indices),
            image_sizes=self.image_sizes[indices],
            offsets=offsets,
            boxes_xywh=self.boxes_xywh[rows],
            labels=self.labels[rows],
            areas=self.areas[rows],
            is_crowd=self.is_crowd[rows],
            is_difficult=self.is_difficult[rows],
            box_convention=self.box_convention,
            skipped=self.skipped,
        )

    def without(self, unusable: Mapping[int, str]) -> "Dataset":
        """The data set without these images, which `skipped` then lists; `unusable` has position -> reason."""
        named = (UnusableImage(self.image_paths[image], unusable[image]) for image in sorted(unusable))
        rest = self.subset([image for image in range(len(self)) if image not in unusable])
        return replace(rest, skipped=(*self.skipped, *named))
