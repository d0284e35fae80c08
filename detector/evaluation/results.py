"""Detections as columns, and the JSON result files of COCO's test server that hold them.

N images, D detections, C classes. A result file is one list of {"image_id", "category_id", "bbox", "score"} rows with
the annotation file's own ids; ours may also carry "class_score" and "iou", the two factors of the score.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.data.invalid_entries import first_ten, short_repr
from detector.data.json_reading import pairs_hook
from detector.data.samples import LARGEST_COORDINATE_PX, Dataset
from detector.errors import ResultFileError
from detector.files import read_regular, write_json

_FORM = 'Expected a list of {"image_id": ..., "category_id": ..., "bbox": [x, y, width, height], "score": ...} rows'


@dataclass(frozen=True, eq=False)
class DetectionTable:
    """D detections over a whole `Dataset`, in any order of images; D may be 0.

    Rows of equal score rank in the order in which they stand here.
    """

    image_index: NDArray[np.int64]
    """(D,) position of the image in the data set."""
    labels: NDArray[np.int64]
    """(D,) 0 to C - 1."""
    boxes_xywh: NDArray[np.float64]
    """(D, 4) x, y, width, height in the original frame, half-open; finite, width and height at least 0."""
    scores: NDArray[np.float64]
    """(D,) the final confidence; finite."""
    class_scores: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """(D,) class probability p of the row's class; NaN where unknown. Left out: all unknown."""
    ious: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """(D,) predicted IoU; NaN where unknown or without an IoU head. Left out: all unknown."""

    def __post_init__(self) -> None:
        count = len(self.scores)
        for name in ("class_scores", "ious"):
            if len(getattr(self, name)) == 0 and count:
                object.__setattr__(self, name, np.full(count, np.nan))
        lengths = {column.name: len(getattr(self, column.name)) for column in fields(self)}
        if set(lengths.values()) != {count} or self.boxes_xywh.shape != (count, 4):
            raise ValueError(f"the columns of a detection table differ in length: {lengths}")
        if not (np.isfinite(self.scores).all() and np.isfinite(self.boxes_xywh).all()):
            raise ValueError("a detection has a score or a box that is not finite: the model's outputs have diverged")

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, rows: "NDArray[np.int64] | NDArray[np.bool_] | slice") -> "DetectionTable":
        """The same table with these rows only, in this order."""
        return DetectionTable(**{column.name: getattr(self, column.name)[rows] for column in fields(self)})

    @classmethod
    def empty(cls) -> "DetectionTable":
        """No detections."""
        none = np.zeros(0, dtype=np.int64)
        return cls(image_index=none, labels=none, boxes_xywh=np.zeros((0, 4)), scores=np.zeros(0))

    @classmethod
    def concatenate(cls, tables: Sequence["DetectionTable"]) -> "DetectionTable":
        """One table of all rows, ordered by image and within an image as they stood.

        So the result does not depend on how the images were shared out between workers, equal scores included.
        """
        if not tables:
            return cls.empty()
        whole = cls(**{f.name: np.concatenate([getattr(table, f.name) for table in tables]) for f in fields(cls)})
        return whole.select(np.argsort(whole.image_index, kind="stable"))


def write_coco_results(table: DetectionTable, dataset: Dataset, path: Path, *, factors: bool = False) -> None:
    """Write a result file with original image and category ids, whole or not at all.

    `factors` adds "class_score" and "iou" to the rows that have them; COCO's server wants the plain form.
    """
    category_ids = [category.id for category in dataset.categories]
    rows: list[dict[str, Any]] = [
        {"image_id": dataset.image_ids[image], "category_id": category_ids[label], "bbox": box, "score": score}
        for image, label, box, score in zip(
            table.image_index.tolist(),
            table.labels.tolist(),
            table.boxes_xywh.tolist(),
            table.scores.tolist(),
            strict=True,
        )
    ]
    if factors:
        for name, column in (("class_score", table.class_scores), ("iou", table.ious)):
            for index in np.flatnonzero(np.isfinite(column)).tolist():
                rows[index][name] = float(column[index])
    write_json(path, rows, non_finite="error")


def read_coco_results(path: Path, dataset: Dataset, repeated_keys: "Counter[str] | None" = None) -> DetectionTable:
    """The detections of a result file, rows in file order.

    Args:
        repeated_keys: counts the keys that occur twice in one row; the last value is the one that is read.

    Raises ResultFileError for a file that is missing, not a regular file, not JSON or not a list, and for rows with an
    unknown image or category id, a score that is not a finite number, or a box that is not four numbers up to
    `LARGEST_COORDINATE_PX` with width and height of at least 0: the first ten are named and all are counted.
    """
    rows = _read_list(path, Counter() if repeated_keys is None else repeated_keys)
    image_index_of = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
    label_of = {category.id: label for label, category in enumerate(dataset.categories)}
    table = _read_columns(rows, image_index_of, label_of)
    if table is None:
        invalid = [
            f"row {number}: {problem}"
            for number, row in enumerate(rows)
            for problem in [_problem_of(row, image_index_of, label_of)]
            if problem is not None
        ]
        raise ResultFileError(
            f"{len(invalid)} of {len(rows)} rows cannot be scored: {first_ten(invalid, str)}",
            file=path,
            remedy=f"{_FORM}, with the ids of the annotation file",
        )
    return table


def _read_list(path: Path, repeated_keys: "Counter[str]") -> list[Any]:
    try:
        rows = json.loads(read_regular(path).decode("utf-8-sig"), object_pairs_hook=pairs_hook(repeated_keys))
    except OSError as error:
        raise ResultFileError(f"cannot be read ({error.strerror or error})", file=path) from error
    except (ValueError, RecursionError) as error:
        remedy = "It may be cut off: write it again"
        raise ResultFileError(f"is not a JSON file ({error})", file=path, remedy=remedy) from error
    if not isinstance(rows, list):
        found = sorted(rows)[:8] if isinstance(rows, dict) else rows
        raise ResultFileError("is not a list of detections", file=path, value=found, remedy=_FORM)
    return rows


def _read_columns(
    rows: list[Any], image_index_of: dict[int | str, int], label_of: dict[int, int]
) -> DetectionTable | None:
    """All rows at once; None where any row is not as it must be (then rows are looked at one by one)."""
    try:
        image_ids = [row["image_id"] for row in rows]
        category_ids = [row["category_id"] for row in rows]
        boxes = [row["bbox"] for row in rows]
        scores = [row["score"] for row in rows]
        factors = [[row.get(name, math.nan) for row in rows] for name in ("class_score", "iou")]
        # numpy would also take "0.5", True and None for numbers.
        if not set(map(type, chain(scores, *factors, chain.from_iterable(boxes)))) <= {int, float}:
            return None
        if bool in set(map(type, chain(image_ids, category_ids))):
            return None
        table = (
            DetectionTable(
                image_index=np.array([image_index_of[image_id] for image_id in image_ids], dtype=np.int64),
                labels=np.array([label_of[category_id] for category_id in category_ids], dtype=np.int64),
                boxes_xywh=np.array(boxes, dtype=np.float64).reshape(len(rows), -1),
                scores=np.array(scores, dtype=np.float64),
                class_scores=np.array(factors[0], dtype=np.float64),
                ious=np.array(factors[1], dtype=np.float64),
            )
            if rows
            else DetectionTable.empty()
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
    boxes_xywh = table.boxes_xywh
    return table if bool((boxes_xywh[:, 2:] >= 0).all() and (abs(boxes_xywh) <= LARGEST_COORDINATE_PX).all()) else None


def _problem_of(row: Any, image_index_of: dict[int | str, int], label_of: dict[int, int]) -> str | None:
    """Problem of one row, or None."""
    if not isinstance(row, dict):
        return f"is not an object but {short_repr(row)}"
    for name in ("image_id", "category_id", "bbox", "score"):
        if name not in row:
            return f"has no {name}"
    image_id, category_id, box, score = (row[name] for name in ("image_id", "category_id", "bbox", "score"))
    if isinstance(image_id, bool | list | dict) or image_id not in image_index_of:
        return f"image_id {short_repr(image_id)} is not among the {len(image_index_of)} images of the annotations"
    if isinstance(category_id, bool | list | dict) or category_id not in label_of:
        return f"category_id {short_repr(category_id)} is not among the {len(label_of)} categories of the annotations"
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        return f"bbox {short_repr(box)} is not four finite numbers"
    if box[2] < 0 or box[3] < 0:
        return f"bbox {short_repr(box)} has a negative width or height"
    if max(map(abs, box)) > LARGEST_COORDINATE_PX:
        return f"bbox {short_repr(box)} does not lie within {LARGEST_COORDINATE_PX:,.0f} px"
    if not _is_number(score):
        return f"score {short_repr(score)} is not a finite number"
    for name in ("class_score", "iou"):
        if name in row and not (_is_number(row[name]) or isinstance(row[name], float)):  # NaN stands for unknown
            return f"{name} {short_repr(row[name])} is not a number"
    return None


def _is_number(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # an integer beyond float's range
        return False
