"""The Arrow columns of a candidate store: detections of several rows in, detections of one row out.

I images of a group, P pairs of an image, D detections of a row. A table's row is an image. Its pairs (a box, its class,
class score and IoU) are the union over the scoring rows, each once; each scoring row has a column of its own that lists
pairs with their scores in the order of rank, so that reading one row reads the pairs and one column.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.errors import CandidateStoreError
from detector.models.detector import Detections
from detector.rescoring.header import REMEDY

_PAIR = pa.struct(
    [
        ("x1", pa.float32()),  # resized frame
        ("y1", pa.float32()),
        ("x2", pa.float32()),
        ("y2", pa.float32()),
        ("label", pa.int32()),
        ("class_score", pa.float32()),
        ("iou", pa.float32()),  # predicted, true in an oracle row; NaN without an IoU head or where the output was NaN
    ]
)
_RANKED = pa.struct([("pair", pa.int32()), ("score", pa.float32())])  # pair: position among the image's pairs
_IMAGE = [("image", pa.int32()), ("height", pa.int32()), ("width", pa.int32())]  # place in the data set; resized size


@dataclass(frozen=True)
class ImageRows:
    """Detections of one image under every row of a part."""

    image: int
    """Position in the data set."""
    size: tuple[int, int]
    """Height, width of the resized image."""
    rows: Sequence[Detections]
    """One entry a row; on the CPU."""


@dataclass(frozen=True)
class RowGroup:
    """Detections of a few images under one row."""

    images: NDArray[np.int64]
    """(I,) positions in the data set."""
    sizes: NDArray[np.int64]
    """(I, 2) height, width of the resized images."""
    counts: NDArray[np.int64]
    """(I,) detections of each image; their sum is D."""
    detections: Detections
    """All these images' detections one after the other, those of an image by rank; `anchor_index` is -1."""


def row_column(number: int) -> str:
    """Name of a row's column."""
    return f"row_{number:02d}"


def columns_of(num_rows: int) -> list[tuple[str, pa.DataType]]:
    """Names and types of all columns of a part with so many rows."""
    rows = [(row_column(number), pa.list_(_RANKED)) for number in range(num_rows)]
    return [*_IMAGE, ("pairs", pa.list_(_PAIR)), *rows]


def to_arrow(images: Sequence[ImageRows], schema: pa.Schema) -> pa.Table:
    """The table of a few images (one at least), with the columns of `columns_of`."""
    num_rows = len(images[0].rows)
    merged = [_merge_pairs(of_image.rows) for of_image in images]
    pairs = np.concatenate([of_image for of_image, _ in merged])
    numbers = np.array([(of_image.image, *of_image.size) for of_image in images])
    columns = [_array(column, pa.int32()) for column in numbers.T]
    fields = [_array(column.view(np.float32), pa.float32()) for column in np.ascontiguousarray(pairs.T)]
    fields[4] = _array(pairs[:, 4], pa.int32())
    columns.append(_lists(fields, _PAIR, [len(of_image) for of_image, _ in merged]))
    for row in range(num_rows):
        places = [places[row] for _, places in merged]
        scores = torch.cat([of_image.rows[row].scores for of_image in images]).numpy()
        ranked = [_array(np.concatenate(places), pa.int32()), _array(scores, pa.float32())]
        columns.append(_lists(ranked, _RANKED, [len(of_image) for of_image in places]))
    return pa.Table.from_arrays(columns, schema=schema)


def _merge_pairs(rows: Sequence[Detections]) -> tuple[NDArray[np.int32], list[NDArray[np.int64]]]:
    """The different pairs (P, 7) of an image, float32 values as their bits, and each row's places (D,) among them."""
    bits = torch.cat(
        [
            torch.cat(
                [
                    row.boxes.view(torch.int32),
                    row.labels.to(torch.int32)[:, None],
                    torch.stack([row.class_scores, row.ious], dim=1).view(torch.int32),
                ],
                dim=1,
            )
            for row in rows
        ]
    ).numpy()
    pairs, places = np.unique(bits, axis=0, return_inverse=True)
    ends = np.cumsum([len(row.scores) for row in rows])
    return pairs, np.split(places.reshape(-1), ends[:-1])


def _lists(fields: Sequence[pa.Array], kind: pa.DataType, counts: Sequence[int]) -> pa.Array:
    values = pa.StructArray.from_arrays(fields, fields=list(kind))
    offsets = _array(np.cumsum([0, *counts]), pa.int32())
    return pa.ListArray.from_arrays(offsets, values, type=pa.list_(kind))


def _array(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """An array without nulls; `pa.array` would import pandas, which takes longer than a small store."""
    content = np.ascontiguousarray(values, dtype=kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, len(content), [None, pa.py_buffer(content)])


def from_arrow(table: pa.Table, row: int, num_classes: int, path: Path) -> RowGroup:
    """One row's detections in a table that has the image's columns, 'pairs' and that row's.

    Raise CandidateStoreError, naming `path`, for values that no writer of ours has written.
    """
    pairs, pair_counts = _values(table["pairs"], "pairs", path)
    ranked, counts = _values(table[row_column(row)], row_column(row), path)
    labels = _field(pairs, "label", path).long()
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise CandidateStoreError("holds a class that does not exist", file=path, remedy=REMEDY)
    boxes = torch.stack([_field(pairs, name, path) for name in ("x1", "y1", "x2", "y2")], dim=1)
    class_scores, ious = _field(pairs, "class_score", path), _field(pairs, "iou", path)
    place, scores = _field(ranked, "pair", path).numpy().astype(np.int64), _field(ranked, "score", path)
    require(bool(boxes.isfinite().all()), "holds a box that is not finite", path)
    for name, fractions in (("class_score", class_scores), ("score", scores), ("iou", ious[~ious.isnan()])):
        require(bool(((fractions >= 0) & (fractions <= 1)).all()), f"holds a {name} that is not from 0 to 1", path)
    require(bool(((place >= 0) & (place < np.repeat(pair_counts, counts))).all()), "names a pair that is absent", path)
    chosen = torch.from_numpy(place + np.repeat(np.cumsum(pair_counts) - pair_counts, counts))
    sizes = np.stack([_whole(table, name, path) for name in ("height", "width")], axis=1)
    require(bool((sizes >= 1).all()), "holds an image without area", path)
    return RowGroup(
        images=_whole(table, "image", path),
        sizes=sizes,
        counts=counts,
        detections=Detections(
            boxes=boxes[chosen],
            scores=scores,
            labels=labels[chosen],
            class_scores=class_scores[chosen],
            ious=ious[chosen],
            anchor_index=torch.full((len(chosen),), -1),
        ),
    )


def require(holds: bool, problem: str, path: Path) -> None:
    """Raise CandidateStoreError with this problem of the file unless `holds`."""
    if not holds:
        raise CandidateStoreError(problem, file=path, remedy=REMEDY)


def _whole(table: pa.Table, name: str, path: Path) -> NDArray[np.int64]:
    require(table[name].null_count == 0, f"lacks the {name} of an image", path)
    numbers: NDArray[np.int64] = table[name].to_numpy().astype(np.int64)
    return numbers


def _values(column: pa.ChunkedArray, name: str, path: Path) -> tuple[pa.StructArray, NDArray[np.int64]]:
    """The items of all images, and how many each image has."""
    lists = column.combine_chunks()
    values = lists.flatten()
    require(lists.null_count == values.null_count == 0, f"lacks the {name} of an image", path)
    return values, np.diff(lists.offsets.to_numpy()).astype(np.int64)


def _field(values: pa.StructArray, name: str, path: Path) -> Tensor:
    column = values.field(name)
    require(column.null_count == 0, f"lacks a value of {name!r}", path)
    return torch.from_numpy(column.to_numpy(zero_copy_only=False).copy())
