"""Content of an annotation file, checked but without a class list, and its conversion to a `Dataset`.

The class list of a data set belongs to all its splits, so it cannot be decided while one file is read.
N images, K annotations.
"""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detector.data.box_counts import count_boxes
from detector.data.samples import Category, Dataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceCategory:
    """A class as the annotation file has it."""

    name: str
    id: int | None
    """None in formats that know names alone; the label + 1 then serves as id."""
    supercategory: str | None = None


@dataclass(frozen=True, eq=False)
class ParsedSplit:
    """One split; annotations are columns in any order."""

    name: str
    source: Path | str
    """The annotation file, or folder and image sets, that errors name."""
    categories: tuple[SourceCategory, ...]
    """In the order of their ids, so that labels follow it."""
    lists_unused_classes: bool
    """True if classes without objects are among `categories` (COCO); False for formats that name seen ones (VOC)."""
    image_paths: Sequence[Path]
    image_ids: Sequence[int | str]
    image_sizes: NDArray[np.int64]
    """(N, 2) height, width"""
    image_index: NDArray[np.int64]
    """(K,) position in the image columns"""
    category_index: NDArray[np.int64]
    """(K,) position in `categories`"""
    boxes_xywh: NDArray[np.float64]
    areas: NDArray[np.float64]
    is_crowd: NDArray[np.bool_]
    is_difficult: NDArray[np.bool_]
    box_convention: str = "half_open"
    has_ignore_mark: NDArray[np.bool_] | None = None
    """(K,) a true 'ignore' or 'difficult' in a COCO file, which that format does not define; None: no such member."""
    notes: tuple[str, ...] = ()
    """Doubts about the file, one sentence each."""

    def boxes_per_category(self) -> NDArray[np.int64]:
        """(C,) number of annotations of each of `categories`."""
        return np.bincount(self.category_index, minlength=len(self.categories))


def to_dataset(split: ParsedSplit, classes: Sequence[str], category_index_of: dict[str, int]) -> Dataset:
    """The split with labels in the order of `classes`; annotations of other classes are dropped, and logged.

    Args:
        category_index_of: where in `split.categories` a class name is; a class that the file lacks has no annotation
            and gets an id that the file does not use.
    """
    label_of = np.full(len(split.categories), -1, dtype=np.int64)
    for label, name in enumerate(classes):
        if name in category_index_of:
            label_of[category_index_of[name]] = label
    labels = label_of[split.category_index]
    kept = np.flatnonzero(labels >= 0)
    _log_dropped(split, labels < 0)
    rows = kept[np.argsort(split.image_index[kept], kind="stable")]
    per_image = np.bincount(split.image_index[rows], minlength=len(split.image_ids))
    marked = 0 if split.has_ignore_mark is None else int(split.has_ignore_mark.sum())
    if marked:
        logger.warning(
            "%s: %d annotations are marked 'ignore' or 'difficult', which COCO's format does not define: they are "
            "trained on and count like all others; 'iscrowd' would exempt them",
            split.name,
            marked,
        )
    for note in split.notes:
        logger.warning("%s: %s", split.name, note)
    sizes = split.image_sizes[split.image_index[rows]]
    known = (sizes > 0).all(axis=1)  # ground truth without image files may lack sizes
    counts = count_boxes(split.boxes_xywh[rows][known], sizes[known])
    if counts:
        logger.warning("%s: %s; ground truth keeps them as they are, training clips or drops them", split.name, counts)
    return Dataset(
        name=split.name,
        categories=_categories(split, classes, category_index_of),
        image_paths=tuple(split.image_paths),
        image_ids=tuple(split.image_ids),
        image_sizes=split.image_sizes,
        offsets=np.concatenate([[0], np.cumsum(per_image)]).astype(np.int64),
        boxes_xywh=split.boxes_xywh[rows],
        labels=labels[rows],
        areas=split.areas[rows],
        is_crowd=split.is_crowd[rows],
        is_difficult=split.is_difficult[rows],
        box_convention=split.box_convention,
    )


def _categories(split: ParsedSplit, classes: Sequence[str], category_index_of: dict[str, int]) -> tuple[Category, ...]:
    ids = [category.id for category in split.categories if category.id is not None]  # all have one, or none
    if not ids:
        return tuple(Category(label + 1, name) for label, name in enumerate(classes))
    unused_ids = itertools.count(max(ids) + 1)
    return tuple(
        Category(ids[category_index_of[name]] if name in category_index_of else next(unused_ids), name)
        for name in classes
    )


def _log_dropped(split: ParsedSplit, dropped: NDArray[np.bool_]) -> None:
    if dropped.any():
        names = sorted({split.categories[index].name for index in np.unique(split.category_index[dropped])})
        logger.info(
            "%s: %d annotations of classes outside the stated list are left out: %s",
            split.name,
            int(dropped.sum()),
            ", ".join(map(repr, names)),
        )
